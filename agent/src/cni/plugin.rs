//! `culvert-cni`: what the container runtime runs for each pod. It asks the agent and prints what the runtime expects.
//!
//! A pod starts only once the agent has captured it, or has said that it is not for the mesh. No answer is no: which pods
//! are for the mesh only the agent knows. Namespaces that have to start without any agent (those that the cluster itself
//! needs) are named in the network configuration.

use std::ffi::OsString;
use std::io::{self, Read as _, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::invocation::{
    self, Environment, Failure, Invocation, NOT_AVAILABLE, NetworkConfiguration, TRY_AGAIN,
};
use super::protocol::{Answer, Command, MOST_BYTES, Outcome, Request, VERSION};

/// How long an answer may take: longer than the agent lets a pod wait, shorter than the runtime's own patience.
const PATIENCE: Duration = Duration::from_secs(25);
/// How long the agent has to take notice of what happens anyway.
const NOTICE: Duration = Duration::from_secs(2);

/// Whether a program of this name is the plugin.
pub fn is_name_of_plugin(program: Option<&OsString>) -> bool {
    let name = program.map(Path::new).and_then(Path::file_name);
    name.is_some_and(|name| name == super::TYPE)
}

/// Does what the runtime asks for by its environment and `input`; prints the result, or the failure, to `out`.
pub fn run(
    get: impl Fn(&str) -> Option<OsString>,
    input: &mut impl io::Read,
    out: &mut impl Write,
) -> ExitCode {
    let mut text = Vec::new();
    let configuration = match input.read_to_end(&mut text) {
        Ok(_) if text.is_empty() => Ok(NetworkConfiguration::default()),
        Ok(_) => invocation::configuration(&text),
        Err(error) => Err(unreadable(&error)),
    };
    let version = configuration.as_ref().map_or_else(
        |_| invocation::NEWEST.to_owned(),
        |read| read.cni_version.clone(),
    );
    let done = configuration.and_then(|configuration| serve(&get, &configuration));
    let (printed, code) = match done {
        Ok(result) => (result, ExitCode::SUCCESS),
        Err(failure) => (Some(failure.printed(&version)), ExitCode::FAILURE),
    };
    let written = printed.map_or(Ok(()), |printed| writeln!(out, "{printed}"));
    match written.and_then(|()| out.flush()) {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}

fn unreadable(error: &io::Error) -> Failure {
    Failure::new(5, format!("standard input cannot be read: {error}"))
}

fn serve(
    environment: &impl Environment,
    configuration: &NetworkConfiguration,
) -> Result<Option<Value>, Failure> {
    let (command, result) = match invocation::read(environment, configuration)? {
        Invocation::Version => return Ok(Some(invocation::versions())),
        Invocation::Pass { result } => return Ok(result),
        Invocation::Ask { command, result } => (command, result),
    };
    let answer = ask(&configuration.socket, &command);
    conclude(&command, answer, configuration).map(|()| result)
}

/// What the agent's answer, or its silence, means to the runtime.
fn conclude(
    command: &Command,
    answer: Result<Outcome, Silence>,
    configuration: &NetworkConfiguration,
) -> Result<(), Failure> {
    let code = match command {
        // What has ended has ended; a runtime would only try again.
        Command::Del { .. } | Command::Gc { .. } => return Ok(()),
        Command::Status => NOT_AVAILABLE,
        Command::Add(_) | Command::Check(_) => TRY_AGAIN,
    };
    match answer {
        Ok(Outcome::Captured | Outcome::NotInMesh | Outcome::Done) => Ok(()),
        Ok(Outcome::Refused { reason }) => Err(Failure::new(
            code,
            format!("the mesh does not let this pod start: {reason}"),
        )),
        Err(silence) => {
            let without = &configuration.start_without_agent;
            if let Command::Add(sandbox) | Command::Check(sandbox) = command
                && without.contains(&sandbox.pod.namespace)
            {
                return Ok(());
            }
            let socket = configuration.socket.display();
            Err(Failure::new(
                code,
                format!(
                    "the node's culvert agent does not answer at {socket} ({}): no pod starts without it, see its DaemonSet",
                    silence.0
                ),
            ))
        }
    }
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Silence(String);

fn ask(socket: &Path, command: &Command) -> Result<Outcome, Silence> {
    let patience = match command {
        Command::Add(_) => PATIENCE,
        _ => NOTICE,
    };
    let request = Request {
        version: VERSION,
        command: command.clone(),
    };
    let failed = |error: io::Error| {
        Silence(match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                format!("not within {} s", patience.as_secs())
            }
            _ => error.to_string(),
        })
    };
    let mut stream = UnixStream::connect(socket).map_err(failed)?;
    let text = serde_json::to_vec(&request).map_err(|error| Silence(error.to_string()))?;
    let until = Instant::now() + patience;
    stream.set_write_timeout(Some(NOTICE)).map_err(failed)?;
    stream.write_all(&text).map_err(failed)?;
    stream.shutdown(std::net::Shutdown::Write).map_err(failed)?;
    let mut answer = Vec::new();
    let mut part = [0; 4096];
    loop {
        // Zero would mean for ever.
        let left = until.saturating_duration_since(Instant::now());
        let left = left.max(Duration::from_millis(1));
        stream.set_read_timeout(Some(left)).map_err(failed)?;
        match stream.read(&mut part).map_err(failed)? {
            0 => break,
            more => answer.extend_from_slice(&part[..more]),
        }
        if answer.len() as u64 > MOST_BYTES {
            return Err(Silence("it says more than it should".to_owned()));
        }
    }
    let answer: Answer = serde_json::from_slice(&answer).map_err(|error| {
        Silence(format!(
            "it broke off its answer, or says what this plugin does not know: {error}"
        ))
    })?;
    if answer.version == VERSION {
        Ok(answer.outcome)
    } else {
        let other = answer.version;
        Err(Silence(format!(
            "it speaks version {other} of the protocol, this plugin {VERSION}: they are of different releases"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::{Command, NetworkConfiguration, Outcome, Silence, conclude};
    use crate::cni::protocol::{PodName, Sandbox};

    fn add(namespace: &str) -> Command {
        Command::Add(Sandbox {
            container: "0123".to_owned(),
            netns: "/var/run/netns/cni-1".into(),
            pod: PodName {
                namespace: namespace.to_owned(),
                name: "p".to_owned(),
                uid: "u".to_owned(),
            },
            addresses: Vec::new(),
        })
    }

    #[track_caller]
    fn concludes(command: &Command, answer: Result<Outcome, &str>, code: Option<u32>) {
        let configuration = NetworkConfiguration {
            start_without_agent: ["kube-system".to_owned()].into(),
            ..NetworkConfiguration::default()
        };
        let answer = answer.map_err(|why| Silence(why.to_owned()));
        let done = conclude(command, answer, &configuration);
        assert_eq!(done.err().map(|failure| failure.code), code);
    }

    #[test]
    fn a_pod_starts_only_if_the_agent_says_so() {
        let refused = || Outcome::Refused {
            reason: "why".to_owned(),
        };
        concludes(&add("shop"), Ok(Outcome::Captured), None);
        concludes(&add("shop"), Ok(Outcome::NotInMesh), None);
        concludes(&add("shop"), Ok(refused()), Some(11));
        concludes(&add("shop"), Err("connection refused"), Some(11));
        // The agent's own word holds everywhere; only its silence does not.
        concludes(&add("kube-system"), Ok(refused()), Some(11));
        concludes(&add("kube-system"), Err("connection refused"), None);
    }

    #[test]
    fn what_has_ended_has_ended_and_a_node_without_agent_is_not_ready() {
        let del = Command::Del {
            container: "0123".to_owned(),
        };
        concludes(&del, Err("connection refused"), None);
        let gc = Command::Gc {
            containers: std::collections::BTreeSet::new(),
        };
        concludes(&gc, Err("connection refused"), None);
        concludes(&Command::Status, Ok(Outcome::Done), None);
        concludes(&Command::Status, Err("connection refused"), Some(50));
    }
}
