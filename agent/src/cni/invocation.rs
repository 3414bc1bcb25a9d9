//! What a container runtime asks of a plugin: environment and standard input, as the CNI specification has them
//! (versions 0.3.0 to 1.1.0).

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::net::IpAddr;
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Value, json};

use super::protocol::{Command, PodName, Sandbox};

/// Versions that are spoken. From 0.3.0 on results are chained.
const VERSIONS: [&str; 6] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0", ""];
/// Of ours.
pub(super) const NEWEST: &str = "1.1.0";

/// Our part of the network configuration, with what the runtime has added.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct NetworkConfiguration {
    pub(super) cni_version: String,
    /// Where the agent listens.
    pub(super) socket: PathBuf,
    /// Namespaces whose pods do not wait for an agent.
    pub(super) start_without_agent: BTreeSet<String>,
    /// What the plugins before us have made.
    pub(super) prev_result: Option<Value>,
    #[serde(rename = "cni.dev/valid-attachments")]
    pub(super) valid_attachments: Option<Vec<Attachment>>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub(super) struct Attachment {
    #[serde(rename = "containerID")]
    container: String,
}

/// A failure, as the specification has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) code: u32,
    pub(super) sentence: String,
}

/// Codes of the specification.
pub(super) const BAD_VERSION: u32 = 1;
pub(super) const BAD_ENVIRONMENT: u32 = 4;
pub(super) const UNREADABLE: u32 = 6;
pub(super) const BAD_CONFIGURATION: u32 = 7;
pub(super) const TRY_AGAIN: u32 = 11;
pub(super) const NOT_AVAILABLE: u32 = 50;

impl Failure {
    pub(super) fn new(code: u32, sentence: impl Into<String>) -> Self {
        Self {
            code,
            sentence: sentence.into(),
        }
    }

    /// As it is printed.
    pub(super) fn printed(&self, version: &str) -> Value {
        json!({ "cniVersion": version, "code": self.code, "msg": self.sentence })
    }
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Invocation {
    /// Print which versions are spoken.
    Version,
    /// Ask the agent, then print `result`.
    Ask {
        command: Command,
        result: Option<Value>,
    },
    /// The agent need not be asked.
    Pass { result: Option<Value> },
}

/// The environment, as far as it matters.
pub(super) trait Environment {
    fn get(&self, name: &str) -> Option<OsString>;
}

impl<F: Fn(&str) -> Option<OsString>> Environment for F {
    fn get(&self, name: &str) -> Option<OsString> {
        self(name)
    }
}

/// Reads the network configuration.
///
/// # Errors
/// It is none, or of a version that is not spoken.
pub(super) fn configuration(input: &[u8]) -> Result<NetworkConfiguration, Failure> {
    let read: Result<NetworkConfiguration, _> = serde_json::from_slice(input);
    let read = read.map_err(|error| {
        Failure::new(
            UNREADABLE,
            format!("the network configuration on standard input cannot be read: {error}"),
        )
    })?;
    if !VERSIONS.contains(&read.cni_version.as_str()) {
        let spoken = VERSIONS[..VERSIONS.len() - 1].join(", ");
        let version = &read.cni_version;
        return Err(Failure::new(
            BAD_VERSION,
            format!(
                "culvert-cni speaks CNI {spoken}, not {version}: set cniVersion of the network to one of these"
            ),
        ));
    }
    Ok(read)
}

/// What `VERSION` prints.
pub(super) fn versions() -> Value {
    json!({
        "cniVersion": NEWEST,
        "supportedVersions": VERSIONS[..VERSIONS.len() - 1],
    })
}

/// What is asked for.
///
/// # Errors
/// The environment or the configuration lacks something.
pub(super) fn read(
    environment: &impl Environment,
    configuration: &NetworkConfiguration,
) -> Result<Invocation, Failure> {
    let command = text(environment, "CNI_COMMAND")?;
    if command == "VERSION" {
        return Ok(Invocation::Version);
    }
    if configuration.socket.as_os_str().is_empty() {
        return Err(Failure::new(
            BAD_CONFIGURATION,
            "`socket` is missing: name the agent's socket, /run/culvert/cni.sock",
        ));
    }
    match command.as_str() {
        "ADD" => add(environment, configuration),
        "CHECK" => Ok(match sandbox(environment, configuration)? {
            Some(sandbox) => Invocation::Ask {
                command: Command::Check(sandbox),
                result: None,
            },
            None => Invocation::Pass { result: None },
        }),
        "DEL" => Ok(Invocation::Ask {
            command: Command::Del {
                container: text(environment, "CNI_CONTAINERID")?,
            },
            result: None,
        }),
        "GC" => {
            let attachments = configuration.valid_attachments.as_ref().ok_or_else(|| {
                Failure::new(
                    BAD_CONFIGURATION,
                    "`cni.dev/valid-attachments` is missing: GC needs it",
                )
            })?;
            let containers = attachments.iter().map(|one| one.container.clone());
            Ok(Invocation::Ask {
                command: Command::Gc {
                    containers: containers.collect(),
                },
                result: None,
            })
        }
        "STATUS" => Ok(Invocation::Ask {
            command: Command::Status,
            result: None,
        }),
        other => Err(Failure::new(
            BAD_ENVIRONMENT,
            format!("CNI_COMMAND is `{other}`: ADD, DEL, CHECK, GC, STATUS and VERSION are known"),
        )),
    }
}

fn add(
    environment: &impl Environment,
    configuration: &NetworkConfiguration,
) -> Result<Invocation, Failure> {
    let result = configuration.prev_result.clone().ok_or_else(|| {
        Failure::new(
            BAD_CONFIGURATION,
            "there is no prevResult: culvert-cni has to stand behind the plugin that makes the pod's interface",
        )
    })?;
    let Some(sandbox) = sandbox(environment, configuration)? else {
        return Ok(Invocation::Pass {
            result: Some(result),
        });
    };
    Ok(Invocation::Ask {
        command: Command::Add(sandbox),
        result: Some(result),
    })
}

/// The pod's sandbox; `None` if this is no pod.
fn sandbox(
    environment: &impl Environment,
    configuration: &NetworkConfiguration,
) -> Result<Option<Sandbox>, Failure> {
    let arguments = environment.get("CNI_ARGS").unwrap_or_default();
    let arguments = arguments.to_string_lossy();
    let argument = |name: &str| {
        let mut pairs = arguments.split(';').filter_map(|pair| pair.split_once('='));
        pairs
            .find(|(key, value)| *key == name && !value.is_empty())
            .map(|(_, value)| value.to_owned())
    };
    let (Some(namespace), Some(name)) = (argument("K8S_POD_NAMESPACE"), argument("K8S_POD_NAME"))
    else {
        return Ok(None);
    };
    let uid = argument("K8S_POD_UID").ok_or_else(|| {
        Failure::new(
            BAD_ENVIRONMENT,
            "CNI_ARGS has no K8S_POD_UID: containerd 1.5 and CRI-O 1.20, or later, say it",
        )
    })?;
    Ok(Some(Sandbox {
        container: text(environment, "CNI_CONTAINERID")?,
        netns: text(environment, "CNI_NETNS")?.into(),
        pod: PodName {
            namespace,
            name,
            uid,
        },
        addresses: addresses(configuration.prev_result.as_ref()),
    }))
}

/// `ips[].address`, in all versions that are spoken.
fn addresses(result: Option<&Value>) -> Vec<IpAddr> {
    let ips = result.and_then(|result| result.get("ips")?.as_array());
    let texts = ips.into_iter().flatten();
    let texts = texts.filter_map(|one| one.get("address")?.as_str());
    texts
        .filter_map(|text| text.split('/').next()?.parse().ok())
        .collect()
}

fn text(environment: &impl Environment, name: &str) -> Result<String, Failure> {
    let value = environment
        .get(name)
        .and_then(|value| value.into_string().ok());
    value.filter(|value| !value.is_empty()).ok_or_else(|| {
        Failure::new(
            BAD_ENVIRONMENT,
            format!("{name} is not set: a container runtime runs this program, not a person"),
        )
    })
}

#[cfg(test)]
mod tests;
