//! `culvert bench`: flags into plans, progress to standard error, reports to standard output.

use std::fs;
use std::io::{self, Read as _, Write};
use std::net::IpAddr;
use std::num::{NonZeroU64, NonZeroUsize};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread::available_parallelism;
use std::time::Duration;

use clap::{Args, Subcommand};
use http::header::{HeaderName, HeaderValue};

use super::table::Table;
use super::{CliError, OutputArgs};
use crate::bench::{
    self, BenchError, Comparison, Direction, Extent, Loop, PROTOCOL_PORTS, Plan, Ports, Progress,
    Protocol, ServerPlan, Target,
};
use crate::mesh::IstioDuration;

/// Largest body: what one of `tcp` may announce.
const LARGEST: u64 = u32::MAX as u64;
/// Time that does not count, unless told otherwise.
const WARMUP: Duration = Duration::from_secs(1);
/// Time that counts, unless told otherwise.
const DURATION: Duration = Duration::from_secs(10);

/// Which half of a benchmark, or its report.
#[derive(Clone, Debug, PartialEq, Subcommand)]
pub enum BenchCommand {
    /// Serve every protocol that the client speaks, until it is stopped: HTTP/1.1 on 8080, HTTP/2 on 8081, gRPC on
    /// 8082, plain requests on 8083, bulk on 8084, and on 8085 /stats with what was served. Sizes are the client's
    /// choice, as in `curl server:8080/?size=16384`.
    Server(ServerArgs),
    /// Load a server and report rates and latencies. Exits with 1 if a request failed.
    Client(Box<ClientArgs>),
    /// Put the JSON of several runs beside each other, with ratios of those that were made in one invocation.
    Report(ReportArgs),
}

/// Arguments of `culvert bench server`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct ServerArgs {
    /// Address to listen on [default: all of both families]
    #[arg(long, value_name = "IP")]
    pub listen: Option<IpAddr>,
    /// First of the six ports
    #[arg(long, value_name = "PORT", default_value = "8080", value_parser = ports)]
    pub base_port: Ports,
    /// Threads [default: one for each CPU]
    #[arg(short, long, value_name = "N")]
    pub threads: Option<NonZeroUsize>,
    /// Format of what was served, which is printed at the end.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Arguments of `culvert bench client`.
#[derive(Clone, Debug, PartialEq, Args)]
pub struct ClientArgs {
    /// HOST or HOST:PORT of a `culvert bench server`, or `http://HOST[:PORT]/PATH` of any HTTP server
    #[arg(value_name = "TARGET")]
    pub target: Target,
    /// What to speak
    #[arg(
        short,
        long,
        value_enum,
        value_name = "PROTOCOL",
        default_value = "http1"
    )]
    pub protocol: Protocol,
    /// Connections that are open at once
    #[arg(short, long, value_name = "N", default_value = "16")]
    pub connections: NonZeroUsize,
    /// Requests under way at once on each connection of h2 and grpc
    #[arg(short = 'm', long, value_name = "N", default_value = "1")]
    pub streams: NonZeroUsize,
    /// How long to measure, such as `30s` [default: 10s]
    #[arg(short, long, value_name = "TIME", value_parser = time)]
    pub duration: Option<Duration>,
    /// Make so many requests instead, without warm-up
    #[arg(short = 'n', long, value_name = "N", conflicts_with_all = ["duration", "warmup"])]
    pub requests: Option<NonZeroU64>,
    /// How long to run before that [default: 1s]
    #[arg(short, long, value_name = "TIME", value_parser = pause)]
    pub warmup: Option<Duration>,
    /// Requests a second over all connections, sent when they are due (open loop); without it each connection sends
    /// as soon as it has an answer (closed loop)
    #[arg(short, long, value_name = "PER_SECOND", value_parser = rate)]
    pub rate: Option<f64>,
    /// Bytes of each request's body, such as `16k` or `1M`
    #[arg(long, value_name = "SIZE", default_value = "0", value_parser = size)]
    pub payload: usize,
    /// Bytes of each response's body [default: 64]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub response_size: Option<usize>,
    /// Which way bulk goes
    #[arg(long, value_enum, value_name = "WAY", default_value = "upload")]
    pub direction: Direction,
    /// A header of each HTTP request, such as `end-user: jason`; may be repeated
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE", value_parser = header)]
    pub headers: Vec<(String, String)>,
    /// When a request has failed
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = time)]
    pub timeout: Duration,
    /// How long to wait for the server at first
    #[arg(long, value_name = "TIME", default_value = "0s", value_parser = pause)]
    pub wait: Duration,
    /// Threads [default: one for each CPU, at most one for each connection]
    #[arg(short, long, value_name = "N")]
    pub threads: Option<NonZeroUsize>,
    /// Time between two lines of progress
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = time)]
    pub interval: Duration,
    /// No progress on standard error
    #[arg(short, long)]
    pub quiet: bool,
    /// What carries the traffic, for the report
    #[arg(
        long,
        value_name = "NAME",
        default_value = "direct",
        env = "BENCH_PLANE"
    )]
    pub plane: String,
    /// Name of all runs that may be compared with this one [default: a new one]
    #[arg(long, value_name = "ID", env = "BENCH_INVOCATION")]
    pub invocation: Option<String>,
    /// The format.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Arguments of `culvert bench report`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct ReportArgs {
    /// Files with the JSON of runs, one or more in each; `-` is standard input
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// The plane that others are compared with [default: that of the first run]
    #[arg(long, value_name = "NAME")]
    pub baseline: Option<String>,
    /// The format.
    #[command(flatten)]
    pub output: OutputArgs,
}

impl BenchCommand {
    pub(super) fn run(&self, out: &mut impl Write) -> Result<ExitCode, CliError> {
        match self {
            Self::Server(args) => args.run(out),
            Self::Client(args) => args.run(out),
            Self::Report(args) => args.run(out),
        }
    }
}

impl ServerArgs {
    fn run(&self, out: &mut impl Write) -> Result<ExitCode, CliError> {
        let ports = self.base_port;
        let plan = ServerPlan {
            listen: self.listen,
            ports,
            threads: self.threads.unwrap_or_else(cpus),
        };
        let served = bench::serve(&plan, || {
            let names: Vec<String> = (ports.http1()..)
                .zip(PROTOCOL_PORTS)
                .map(|(port, name)| format!("{name} {port}"))
                .collect();
            say(&format!("listening: {}", names.join(", ")));
        })?;
        self.output.print(out, &served, |_wide| {
            let mut table =
                Table::new(&["PROTOCOL", "CONNECTIONS", "REQUESTS", "RECEIVED", "SENT"])
                    .with_gap(3);
            let all = [
                ("http1", served.http1),
                ("h2", served.h2),
                ("grpc", served.grpc),
                ("tcp", served.tcp),
                ("bulk", served.bulk),
            ];
            for (name, counters) in all {
                table.push([
                    name.to_owned(),
                    counters.connections.to_string(),
                    counters.requests.to_string(),
                    counters.bytes_received.to_string(),
                    counters.bytes_sent.to_string(),
                ]);
            }
            table.text()
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

impl ClientArgs {
    fn run(&self, out: &mut impl Write) -> Result<ExitCode, CliError> {
        let plan = self.plan().map_err(CliError::Usage)?;
        let is_bulk = plan.protocol == Protocol::Bulk;
        let mut before = 0.0;
        let report = bench::run(&plan, |progress| {
            if !self.quiet {
                say(&line(progress, is_bulk, &mut before));
            }
        })?;
        self.output.print(out, &report, |_wide| report.text())?;
        Ok(if report.is_clean() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }

    /// What the flags ask for.
    ///
    /// # Errors
    /// One sentence, if they do not go together.
    pub fn plan(&self) -> Result<Plan, String> {
        let protocol = self.protocol;
        let name = protocol.name();
        let refuse = |flag: &str, why: &str| Err(format!("{flag} does not go with {name}: {why}"));
        if self.streams.get() > 1 && !protocol.is_multiplexed() {
            return refuse(
                "--streams",
                "only h2 and grpc have several requests on a connection",
            );
        }
        let has_schedule = !matches!(protocol, Protocol::Bulk | Protocol::Idle);
        if !has_schedule && self.rate.is_some() {
            return refuse("--rate", "it goes as fast as it goes, or not at all");
        }
        if !has_schedule && self.requests.is_some() {
            return refuse("--requests", "say how long with --duration");
        }
        if !self.headers.is_empty() && !protocol.is_http() {
            return refuse("--header", "only http1 and h2 have them");
        }
        if protocol == Protocol::Bulk && (self.payload > 0 || self.response_size.is_some()) {
            return refuse("--payload or --response-size", "bulk has no end");
        }
        if protocol != Protocol::Bulk && self.direction != Direction::Upload {
            return refuse("--direction", "only bulk has one");
        }
        if self.target.path.is_some() && !protocol.is_http() {
            return refuse("a URL", "write HOST or HOST:PORT");
        }
        if self.target.path.is_some() && self.response_size.is_some() {
            return Err(
                "--response-size does not go with a URL: only `culvert bench server` heeds it"
                    .to_owned(),
            );
        }
        let response = match self.response_size {
            Some(size) => size,
            None if self.target.path.is_some() || protocol == Protocol::Bulk => 0,
            None => 64,
        };
        let extent = self.requests.map_or_else(
            || Extent::Time {
                warmup: self.warmup.unwrap_or(WARMUP),
                duration: self.duration.unwrap_or(DURATION),
            },
            Extent::Requests,
        );
        let threads = self.threads.unwrap_or_else(cpus);
        Ok(Plan {
            protocol,
            target: self.target.clone(),
            connections: self.connections,
            streams: self.streams,
            pace: self.rate.map_or(Loop::Closed, |rate| Loop::Open { rate }),
            extent,
            payload: self.payload,
            response,
            direction: self.direction,
            headers: self.headers.clone(),
            timeout: self.timeout,
            wait: self.wait,
            threads: threads.min(self.connections),
            interval: self.interval,
            invocation: self.invocation.clone().unwrap_or_else(invocation),
            plane: self.plane.clone(),
        })
    }
}

impl ReportArgs {
    fn run(&self, out: &mut impl Write) -> Result<ExitCode, CliError> {
        let mut runs = Vec::new();
        for file in &self.files {
            runs.extend(bench::read_runs(&file.display().to_string(), &read(file)?)?);
        }
        let comparison = bench::compare(&runs, self.baseline.as_deref())?;
        self.output
            .print(out, &comparison, |_wide| text(&comparison))?;
        Ok(ExitCode::SUCCESS)
    }
}

fn text(comparison: &Comparison) -> String {
    let mut table = Table::new(&Comparison::HEADINGS).with_gap(3);
    for cells in comparison.cells() {
        table.push(cells);
    }
    let mut text = table.text();
    for note in &comparison.notes {
        text.push_str(note);
        text.push('\n');
    }
    text
}

fn read(file: &Path) -> Result<String, BenchError> {
    let mut text = String::new();
    let read = if file == Path::new("-") {
        io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        fs::read_to_string(file)
    };
    read.map_err(|source| BenchError::ReadFile {
        path: file.to_owned(),
        source,
    })
}

/// One line of progress. `before` is when the line before was.
fn line(progress: Progress, is_bulk: bool, before: &mut f64) -> String {
    let interval = match progress {
        Progress::Warmup(left) => {
            return format!(
                "all connections are open; measuring in {:.1} s",
                left.as_secs_f64()
            );
        }
        Progress::Interval(interval) => interval,
    };
    let seconds = (interval.at_s - *before).max(f64::EPSILON);
    *before = interval.at_s;
    let at = interval.at_s;
    if is_bulk {
        return format!(
            "{at:>6.1} s {:>10.2} Gbit/s",
            a_second(interval.bytes, seconds) * 8e-9
        );
    }
    format!(
        "{at:>6.1} s {:>10.0}/s   p50 {:>9.0} us   p99 {:>9.0} us   {} failed",
        a_second(interval.completed, seconds),
        interval.p50_us,
        interval.p99_us,
        interval.failed
    )
}

#[expect(clippy::cast_precision_loss, reason = "shown with few digits")]
fn a_second(count: u64, seconds: f64) -> f64 {
    count as f64 / seconds
}

/// For people who watch; a closed standard error is no reason to stop.
fn say(line: &str) {
    let _unheard = writeln!(io::stderr(), "{line}");
}

fn cpus() -> NonZeroUsize {
    available_parallelism().unwrap_or(NonZeroUsize::MIN)
}

fn invocation() -> String {
    format!("{:08x}", rand::random::<u32>())
}

fn ports(text: &str) -> Result<Ports, String> {
    let base = text.parse().ok().and_then(Ports::from);
    base.ok_or_else(|| "six ports have to fit between 1 and 65535".to_owned())
}

fn pause(text: &str) -> Result<Duration, String> {
    let duration = IstioDuration::try_from(text.to_owned());
    duration
        .map(|duration| duration.0)
        .map_err(|error| error.to_string())
}

fn time(text: &str) -> Result<Duration, String> {
    match pause(text)? {
        Duration::ZERO => Err("write more than 0".to_owned()),
        duration => Ok(duration),
    }
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate.is_finite() && rate > 0.0 => Ok(rate),
        _ => Err("write a number above 0".to_owned()),
    }
}

/// `64`, `16k`, `1M`: with the suffixes of powers of 1024 that load generators share.
fn size(text: &str) -> Result<usize, String> {
    let wrong = || "write a number of bytes, such as 64, 16k or 1M, less than 4G".to_owned();
    let (digits, factor) = match text.strip_suffix(['k', 'K']) {
        Some(digits) => (digits, 1 << 10),
        None => match text.strip_suffix(['m', 'M']) {
            Some(digits) => (digits, 1 << 20),
            None => (text, 1),
        },
    };
    let bytes = digits
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(factor));
    let bytes = bytes.filter(|bytes| *bytes <= LARGEST).ok_or_else(wrong)?;
    usize::try_from(bytes).map_err(|_too_large| wrong())
}

fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text
        .split_once(':')
        .ok_or_else(|| "write NAME: VALUE".to_owned())?;
    let (name, value) = (name.trim(), value.trim());
    HeaderName::try_from(name).map_err(|error| error.to_string())?;
    HeaderValue::try_from(value).map_err(|error| error.to_string())?;
    Ok((name.to_owned(), value.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use clap::Parser;
    use saphyr::{LoadableYamlNode as _, Yaml};

    use super::{BenchCommand, ClientArgs, size};
    use crate::bench::{Extent, Loop, Protocol};

    #[derive(Debug, Parser)]
    struct Program {
        #[command(subcommand)]
        command: BenchCommand,
    }

    fn client(words: &[&str]) -> Result<ClientArgs, clap::Error> {
        let words = [&["bench", "client"], words].concat();
        match Program::try_parse_from(words)?.command {
            BenchCommand::Client(args) => Ok(*args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn sizes_have_suffixes_of_1024() {
        for (text, expected) in [
            ("0", Some(0)),
            ("64", Some(64)),
            ("16k", Some(16_384)),
            ("16K", Some(16_384)),
            ("1M", Some(1 << 20)),
            ("4095M", Some(4095 << 20)),
            ("4096M", None),
            ("k", None),
            ("1G", None),
            ("-1", None),
            ("99999999999999999999k", None),
        ] {
            assert_eq!(size(text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn flags_become_a_plan() {
        let args = client(&[
            "-p", "grpc", "-c", "8", "-m", "4", "-r", "100", "-n", "50", "server",
        ]);
        let plan = args.unwrap().plan().unwrap();
        assert_eq!(plan.load(), "grpc c=8 m=4 100/s receive 64");
        assert_eq!(plan.pace, Loop::Open { rate: 100.0 });
        assert_eq!(plan.extent, Extent::Requests(50.try_into().unwrap()));
        assert_eq!((plan.protocol, plan.port()), (Protocol::Grpc, 8082));
        assert!(plan.threads <= plan.connections);
        let large = client(&["--payload", "16k", "--response-size", "1M", "server"]).unwrap();
        assert_eq!(
            large.plan().unwrap().load(),
            "http1 c=16 send 16k receive 1M"
        );
        let other = client(&["http://shop/cart"]).unwrap().plan().unwrap();
        assert_eq!((other.port(), other.response), (80, 0));
    }

    #[test]
    fn flags_that_do_not_go_together_are_refused() {
        for (words, sentence) in [
            (&["-m", "2", "x"][..], "--streams does not go with http1"),
            (
                &["-p", "bulk", "-r", "1", "x"],
                "--rate does not go with bulk",
            ),
            (
                &["-p", "idle", "-n", "1", "x"],
                "--requests does not go with idle",
            ),
            (
                &["-p", "tcp", "-H", "a: b", "x"],
                "--header does not go with tcp",
            ),
            (
                &["-p", "bulk", "--payload", "1", "x"],
                "--payload or --response-size does not go with bulk",
            ),
            (
                &["--direction", "both", "x"],
                "--direction does not go with http1",
            ),
            (&["-p", "tcp", "http://x/"], "a URL does not go with tcp"),
            (
                &["--response-size", "1", "http://x/"],
                "--response-size does not go with a URL",
            ),
        ] {
            let refused = client(words).unwrap().plan().unwrap_err();
            assert!(refused.starts_with(sentence), "{words:?}: {refused}");
        }
        for words in [
            &["-n", "1", "-d", "1s", "x"][..],
            &["-r", "0", "x"],
            &["-d", "0s", "x"],
            &["-c", "0", "x"],
            &["-H", "no colon", "x"],
            &["https://x/"],
            &[],
        ] {
            assert!(client(words).is_err(), "{words:?}");
        }
    }

    /// What `deploy/bench` has its containers run is what this program understands.
    #[test]
    fn the_jobs_of_deploy_are_plans() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/bench/jobs");
        let mut loads = Vec::new();
        for file in fs::read_dir(directory).unwrap() {
            let path = file.unwrap().path();
            let text = fs::read_to_string(&path).unwrap();
            let documents = Yaml::load_from_str(&text).unwrap();
            let container = &documents[0]["spec"]["template"]["spec"]["containers"][0];
            let words = |field: &str| -> Vec<String> {
                let items = container[field].as_vec().unwrap().iter();
                items
                    .map(|item| item.as_str().unwrap().to_owned())
                    .collect()
            };
            assert_eq!(
                words("command"),
                ["culvert", "bench", "client"],
                "{}",
                path.display()
            );
            let args = words("args");
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            let plan = client(&args).unwrap().plan().unwrap();
            assert_eq!(plan.target.host, "server", "{}", path.display());
            loads.push(plan.load());
        }
        loads.sort();
        let count = loads.len();
        loads.dedup();
        assert_eq!(
            loads.len(),
            count,
            "each load has a name of its own: {loads:?}"
        );
        assert!(count >= 7, "{loads:?}");
    }
}
