//! As much HTTP/1.1 as scenarios and Bookinfo need: exact requests, answers read to the last trailer, small servers.

use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context as _, Result, bail, ensure};

use super::connect;

/// Longest body that is read.
const MAX_BODY: u64 = 64 << 20;

/// An answer.
#[derive(Clone, Debug)]
pub struct Response {
    /// Status code.
    pub status: u16,
    /// Header lines as they came, without line ends.
    pub headers: Vec<String>,
    /// Body, with chunked coding undone.
    pub body: Vec<u8>,
    /// Trailer lines, as headers.
    pub trailers: Vec<String>,
}

impl Response {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    /// A trailer's value.
    pub fn trailer(&self, name: &str) -> Option<&str> {
        find(&self.trailers, name)
    }
}

/// A request as a server sees it.
#[derive(Clone, Debug)]
pub struct Request {
    /// Method.
    pub method: String,
    /// Path with its query.
    pub path: String,
    /// Header lines.
    pub headers: Vec<String>,
}

impl Request {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }
}

fn find<'a>(headers: &'a [String], name: &str) -> Option<&'a str> {
    let mut pairs = headers.iter().filter_map(|line| line.split_once(':'));
    pairs
        .find(|(key, _)| key.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.trim())
}

/// Fetches a path over a connection of its own.
///
/// # Errors
/// If the server cannot be reached or what it says is not HTTP.
pub fn get(server: SocketAddr, host: &str, path: &str) -> Result<Response> {
    let stream = connect(server).with_context(|| format!("cannot connect to {server}"))?;
    request(&stream, host, path, &[])
}

/// Sends a GET with more header lines over a connection and reads the answer; the server is asked to close.
///
/// # Errors
/// If the connection breaks or what the server says is not HTTP.
pub fn request(stream: &TcpStream, host: &str, path: &str, headers: &[String]) -> Result<Response> {
    let mut ask = Ask::get(path).host(host).with("Connection", "close");
    for line in headers {
        let (name, value) = line.split_once(':').context("a header has a colon")?;
        ask = ask.with(name, value.trim());
    }
    Conversation::over(stream.try_clone().context("cannot clone a socket")?).ask(&ask)
}

/// A request as a client writes it: nothing is checked or added but `Host`, and `Content-Length` for a body.
#[derive(Clone, Debug)]
pub struct Ask {
    /// Method.
    pub method: String,
    /// What stands behind it: a path with its query, or whatever else.
    pub target: String,
    /// `Host`, or `:authority`.
    pub host: String,
    /// Headers in their order.
    pub headers: Vec<(String, String)>,
    /// Body.
    pub body: Vec<u8>,
}

impl Ask {
    /// A request of any method, for host `echo`.
    pub fn new(method: &str, target: &str) -> Self {
        Self {
            method: method.to_owned(),
            target: target.to_owned(),
            host: "echo".to_owned(),
            headers: Vec::new(),
            body: Vec::new(),
        }
    }

    /// A GET for host `echo`.
    pub fn get(target: &str) -> Self {
        Self::new("GET", target)
    }

    /// For another host.
    #[must_use]
    pub fn host(mut self, host: &str) -> Self {
        host.clone_into(&mut self.host);
        self
    }

    /// With a header more.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Asks an echo workload for an answer out of the ordinary.
    #[must_use]
    pub fn wishing(self, wish: &str) -> Self {
        self.with(crate::echo::WISH_HEADER, wish)
    }

    /// With a body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// Sends it over a connection of its own and reads the answer.
    ///
    /// # Errors
    /// If the server cannot be reached, breaks off, or what it says is not HTTP.
    pub fn send(&self, to: SocketAddr) -> Result<Response> {
        let ask = self.clone().with("Connection", "close");
        Conversation::open(to)?.ask(&ask)
    }

    /// The request as it goes over the wire.
    pub fn wire(&self) -> Vec<u8> {
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.target);
        let mut line = |name: &str, value: &str| {
            for part in [name, ": ", value, "\r\n"] {
                head.push_str(part);
            }
        };
        if !self.host.is_empty() {
            line("Host", &self.host);
        }
        for (name, value) in &self.headers {
            line(name, value);
        }
        if !self.body.is_empty() {
            line("Content-Length", &self.body.len().to_string());
        }
        head.push_str("\r\n");
        [head.as_bytes(), &self.body].concat()
    }
}

/// A connection that carries requests one after the other.
pub struct Conversation {
    reader: BufReader<TcpStream>,
}

impl Conversation {
    /// Connects.
    ///
    /// # Errors
    /// If the server cannot be reached.
    pub fn open(to: SocketAddr) -> Result<Self> {
        let stream = connect(to).with_context(|| format!("cannot connect to {to}"))?;
        Ok(Self::over(stream))
    }

    /// Over a connection that is there already.
    pub fn over(stream: TcpStream) -> Self {
        Self {
            reader: BufReader::new(stream),
        }
    }

    /// Sends a request and reads its answer.
    ///
    /// # Errors
    /// If the connection breaks or what the server says is not HTTP.
    pub fn ask(&mut self, ask: &Ask) -> Result<Response> {
        self.write(&ask.wire()).context("cannot send the request")?;
        self.answer(&ask.method)
    }

    /// Sends bytes as they are.
    ///
    /// # Errors
    /// If the connection breaks.
    pub fn write(&self, bytes: &[u8]) -> Result<()> {
        let mut stream = self.reader.get_ref();
        Ok(stream.write_all(bytes)?)
    }

    /// Reads the answer to a request of this method.
    ///
    /// # Errors
    /// If the connection breaks or what the server says is not HTTP.
    pub fn answer(&mut self, method: &str) -> Result<Response> {
        read_response(&mut self.reader, method)
    }

    /// Reads what comes, as it is, until so many bytes are there: after an upgrade.
    ///
    /// # Errors
    /// If the connection ends first.
    pub fn read(&mut self, length: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.reader
            .read_exact(&mut bytes)
            .with_context(|| format!("{length} bytes expected"))?;
        Ok(bytes)
    }

    /// Whether the server has ended the connection, or ends it now, with nothing more to say.
    ///
    /// # Errors
    /// If it says something, or nothing and stays.
    pub fn has_ended(&mut self) -> Result<()> {
        let mut rest = Vec::new();
        match self.reader.read_to_end(&mut rest) {
            Ok(_) if rest.is_empty() => Ok(()),
            Ok(_) => bail!("it says more: {:?}", String::from_utf8_lossy(&rest)),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(()),
            Err(error) => Err(error).context("it does not end the connection"),
        }
    }

    /// The connection itself.
    pub fn stream(&self) -> &TcpStream {
        self.reader.get_ref()
    }
}

/// Reads the answer to a request of a method.
///
/// # Errors
/// If it breaks off or is not HTTP.
pub(crate) fn read_response(reader: &mut impl BufRead, method: &str) -> Result<Response> {
    let (first, headers) = read_head(reader)?.context("the connection ended without an answer")?;
    let status = first.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status: u16 = status.with_context(|| format!("`{first}` is no status line"))?;
    let mut response = Response {
        status,
        headers,
        body: Vec::new(),
        trailers: Vec::new(),
    };
    // RFC 9112 §6.3: these have no body, whatever their headers say.
    if method == "HEAD" || matches!(status, 100..=199 | 204 | 304) {
        return Ok(response);
    }
    let body = &mut response.body;
    if find(&response.headers, "transfer-encoding")
        .is_some_and(|coding| coding.eq_ignore_ascii_case("chunked"))
    {
        read_chunks(reader, body)?;
        response.trailers = read_fields(reader)?;
    } else if let Some(length) = find(&response.headers, "content-length") {
        let length: u64 = length.parse().context("content-length is no number")?;
        ensure!(length <= MAX_BODY, "a body of {length} bytes is too long");
        reader
            .take(length)
            .read_to_end(body)
            .context("the body broke off")?;
        ensure!(
            body.len() as u64 == length,
            "the body ended after {} of {length} bytes",
            body.len()
        );
    } else {
        reader
            .take(MAX_BODY)
            .read_to_end(body)
            .context("the body broke off")?;
    }
    Ok(response)
}

/// Reads chunks up to and with the last one, which has no bytes.
fn read_chunks(reader: &mut impl BufRead, body: &mut Vec<u8>) -> Result<()> {
    loop {
        let mut line = String::new();
        reader
            .read_line(&mut line)
            .context("a chunk was expected")?;
        let length = u64::from_str_radix(line.trim(), 16).context("no chunk length")?;
        if length == 0 {
            return Ok(());
        }
        ensure!(
            body.len() as u64 + length <= MAX_BODY,
            "the body is too long"
        );
        let before = body.len() as u64;
        reader
            .by_ref()
            .take(length)
            .read_to_end(body)
            .context("a chunk broke off")?;
        ensure!(body.len() as u64 == before + length, "a chunk broke off");
        line.clear();
        reader
            .read_line(&mut line)
            .context("the end of a chunk was expected")?;
    }
}

fn read_head(reader: &mut impl BufRead) -> Result<Option<(String, Vec<String>)>> {
    let mut lines = read_fields(reader)?;
    if lines.is_empty() {
        return Ok(None);
    }
    let first = lines.remove(0);
    Ok(Some((first, lines)))
}

/// Lines up to an empty one; none at the end of the stream.
fn read_fields(reader: &mut impl BufRead) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        let length = reader.read_line(&mut line).context("cannot read a head")?;
        if length == 0 && lines.is_empty() {
            return Ok(lines);
        }
        ensure!(length > 0, "the connection ended within a head");
        let line = line.trim_end();
        if line.is_empty() {
            return Ok(lines);
        }
        lines.push(line.to_owned());
    }
}

/// Answers the requests of one connection until the client is done.
///
/// # Errors
/// If the connection breaks or what the client says is not HTTP.
pub fn serve(
    mut stream: &TcpStream,
    answer: impl Fn(&Request) -> (u16, &'static str, Vec<u8>),
) -> Result<()> {
    let mut reader = BufReader::new(stream);
    while let Some((first, headers)) = read_head(&mut reader)? {
        let mut words = first.split(' ').map(str::to_owned);
        let (method, path) = (words.next(), words.next());
        let request = Request {
            method: method.context("no method")?,
            path: path.context("no path")?,
            headers,
        };
        let close = request
            .header("connection")
            .is_some_and(|value| value.eq_ignore_ascii_case("close"));
        let (status, kind, body) = answer(&request);
        let reason = if status == 200 { "OK" } else { "Error" };
        let mut reply = format!(
            "HTTP/1.1 {status} {reason}\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
            body.len()
        )
        .into_bytes();
        reply.extend_from_slice(&body);
        stream.write_all(&reply).context("cannot answer")?;
        if close {
            break;
        }
    }
    Ok(())
}
