//! What a service port speaks, which decides whether requests on it can be told apart.

/// The protocol of a service port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum AppProtocol {
    /// HTTP/1.1 towards the application; clients may speak either version.
    Http1,
    /// HTTP/2 with prior knowledge (h2c), gRPC included.
    Http2,
    /// Bytes.
    Tcp,
    /// TLS of the applications' own: bytes to us.
    Tls,
    /// Undeclared: the client's first bytes tell.
    #[default]
    Detect,
}

/// Ports whose protocol lets the server speak first, so that waiting for the client's first bytes would
/// never end: SMTP, DNS over TCP, MySQL, MongoDB (Istio's list, for undeclared ports).
const SERVER_FIRST: [u16; 4] = [25, 53, 3306, 27017];

impl AppProtocol {
    /// Chooses as Istio does: `appProtocol`, else the port's name up to its first dash, else the number.
    /// What is none of the known words is undeclared.
    pub fn of_port(number: u16, name: &str, app_protocol: &str) -> Self {
        let prefix = name.split_once('-').map_or(name, |(first, _)| first);
        // Two words with a dash of their own.
        let prefix = if name == "grpc-web" || name.starts_with("grpc-web-") {
            "grpc-web"
        } else {
            prefix
        };
        let declared = Self::of_word(app_protocol).or_else(|| Self::of_word(prefix));
        declared.unwrap_or_else(|| {
            if SERVER_FIRST.contains(&number) {
                Self::Tcp
            } else {
                Self::Detect
            }
        })
    }

    fn of_word(word: &str) -> Option<Self> {
        match word.to_ascii_lowercase().as_str() {
            "http" | "kubernetes.io/ws" | "grpc-web" => Some(Self::Http1),
            "http2" | "grpc" | "kubernetes.io/h2c" => Some(Self::Http2),
            "https" | "tls" | "kubernetes.io/wss" => Some(Self::Tls),
            "tcp" | "mongo" | "redis" | "mysql" | "udp" => Some(Self::Tcp),
            _ => None,
        }
    }

    /// Whether requests can be seen without looking at the bytes first.
    pub fn is_http(self) -> bool {
        matches!(self, Self::Http1 | Self::Http2)
    }
}

#[cfg(test)]
mod tests {
    use super::AppProtocol;

    #[test]
    fn a_port_says_what_it_speaks_by_protocol_name_or_number() {
        for (number, name, app_protocol, expected) in [
            (80, "", "", AppProtocol::Detect),
            (9080, "http", "", AppProtocol::Http1),
            (9080, "http-admin", "", AppProtocol::Http1),
            (9080, "httpx", "", AppProtocol::Detect),
            (7070, "grpc", "", AppProtocol::Http2),
            (7070, "grpc-web-ui", "", AppProtocol::Http1),
            (7070, "tcp", "kubernetes.io/h2c", AppProtocol::Http2),
            (80, "http", "tcp", AppProtocol::Tcp),
            (80, "http", "example.com/mine", AppProtocol::Http1),
            (443, "https", "", AppProtocol::Tls),
            (3306, "", "", AppProtocol::Tcp),
            (3306, "http", "", AppProtocol::Http1),
        ] {
            assert_eq!(
                AppProtocol::of_port(number, name, app_protocol),
                expected,
                "{number} {name} {app_protocol}"
            );
        }
    }
}
