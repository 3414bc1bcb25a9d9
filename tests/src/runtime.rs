//! A node's container runtime, as far as networks go: it runs the plugins of its configuration for each pod.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::lab::Pod;

/// The plugin under test.
const PLUGIN: &str = "culvert-cni";

/// What kindnet writes.
pub const KINDNET: &str = r#"
{
  "cniVersion": "1.0.0",
  "name": "kindnet",
  "plugins": [
  {
    "type": "ptp",
    "ipMasq": false,
    "ipam": { "type": "host-local", "ranges": [ [ { "subnet": "10.244.0.0/24" } ] ] }
  },
  {
    "type": "portmap",
    "capabilities": { "portMappings": true }
  }
  ]
}
"#;

/// Its directories.
#[derive(Clone, Debug)]
pub struct Runtime {
    directory: PathBuf,
}

/// A pod's sandbox, as the kubelet asks for it.
#[derive(Clone, Debug)]
pub struct Sandbox {
    /// The runtime's name of it.
    pub container: String,
    /// Namespace, name and UID of the pod.
    pub pod: [String; 3],
    /// The pod's network namespace.
    pub netns: PathBuf,
    /// What it was given.
    pub addresses: Vec<String>,
}

impl Sandbox {
    /// The sandbox of a lab's pod.
    pub fn of(pod: &Pod, uid: &str) -> Self {
        let spec = pod.spec();
        Self {
            container: format!("container-{}", spec.name),
            pod: [spec.namespace.clone(), spec.name.clone(), uid.to_owned()],
            netns: pod.netns().path(),
            addresses: vec![format!("{}/24", pod.v4()), format!("{}/64", pod.v6())],
        }
    }

    fn result(&self) -> Value {
        let ips: Vec<Value> = self
            .addresses
            .iter()
            .map(|address| json!({ "address": address }))
            .collect();
        json!({
            "cniVersion": "1.0.0",
            "interfaces": [{ "name": "eth0", "sandbox": self.netns }],
            "ips": ips,
        })
    }
}

/// How a plugin ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Whether with 0.
    pub good: bool,
    /// What it printed; null if nothing.
    pub printed: Value,
}

impl Ended {
    /// That it failed with a code, and says this.
    ///
    /// # Errors
    /// If not.
    pub fn failed(&self, code: u32, part: &str) -> Result<()> {
        let said = self.printed["msg"].as_str().unwrap_or_default();
        let is_so = !self.good && self.printed["code"] == code && said.contains(part);
        ensure!(is_so, "not code {code} and `{part}`: {self:?}");
        Ok(())
    }
}

impl Runtime {
    /// A runtime whose network is kindnet's, in a directory of its own.
    ///
    /// # Errors
    /// If the directory cannot be filled.
    pub fn new(directory: PathBuf) -> Result<Self> {
        let runtime = Self { directory };
        for part in [runtime.conf_dir(), runtime.bin_dir()] {
            fs::create_dir_all(&part)
                .with_context(|| format!("cannot create {}", part.display()))?;
        }
        for plugin in ["ptp", "portmap"] {
            fs::write(runtime.bin_dir().join(plugin), "")
                .with_context(|| format!("cannot write {plugin}"))?;
        }
        runtime.configure(KINDNET)?;
        Ok(runtime)
    }

    /// Where networks are configured.
    pub fn conf_dir(&self) -> PathBuf {
        self.directory.join("net.d")
    }

    /// Where plugins are.
    pub fn bin_dir(&self) -> PathBuf {
        self.directory.join("bin")
    }

    fn configuration(&self) -> PathBuf {
        self.conf_dir().join("10-kindnet.conflist")
    }

    /// The network's own agent writes its configuration.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn configure(&self, text: &str) -> Result<()> {
        let draft = self.directory.join("draft");
        fs::write(&draft, text).context("cannot write a configuration")?;
        fs::rename(&draft, self.configuration()).context("cannot write a configuration")
    }

    /// The network's configuration.
    ///
    /// # Errors
    /// If it is gone.
    pub fn configured(&self) -> Result<String> {
        fs::read_to_string(self.configuration()).context("the configuration is gone")
    }

    /// The names of all files in its directories.
    ///
    /// # Errors
    /// If a directory is gone.
    pub fn files(&self) -> Result<BTreeSet<String>> {
        let mut names = BTreeSet::new();
        for directory in [self.conf_dir(), self.bin_dir()] {
            for entry in fs::read_dir(directory)? {
                names.insert(entry?.file_name().to_string_lossy().into_owned());
            }
        }
        Ok(names)
    }

    /// The plugin's entry in the chain; nothing if it is not in it.
    ///
    /// # Errors
    /// If the configuration cannot be read.
    pub fn entry(&self) -> Result<Option<Value>> {
        let whole: Value = serde_json::from_str(&self.configured()?).context("no JSON")?;
        let plugins = whole["plugins"].as_array().context("no plugins")?;
        let last = plugins.last().filter(|one| one["type"] == PLUGIN);
        Ok(last.map(|entry| {
            let mut entry = entry.clone();
            entry["name"] = whole["name"].clone();
            entry["cniVersion"] = whole["cniVersion"].clone();
            entry
        }))
    }

    /// Runs the plugin for a sandbox, after those before it in the chain.
    ///
    /// # Errors
    /// If it is not in the chain, or its program is missing.
    pub fn run(&self, command: &str, sandbox: &Sandbox) -> Result<Ended> {
        let mut entry = self.entry()?.context("the plugin is not in the chain")?;
        entry["prevResult"] = sandbox.result();
        self.run_with(&self.bin_dir().join(PLUGIN), command, sandbox, &entry)
    }

    fn run_with(
        &self,
        program: &Path,
        command: &str,
        sandbox: &Sandbox,
        entry: &Value,
    ) -> Result<Ended> {
        let [namespace, name, uid] = &sandbox.pod;
        let mut child = Command::new(program)
            .env_clear()
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", &sandbox.container)
            .env("CNI_NETNS", &sandbox.netns)
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", self.bin_dir())
            .env(
                "CNI_ARGS",
                format!(
                    "IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name};K8S_POD_INFRA_CONTAINER_ID={};K8S_POD_UID={uid}",
                    sandbox.container
                ),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("{} cannot be started", program.display()))?;
        let mut stdin = child.stdin.take().context("the plugin has no input")?;
        stdin.write_all(entry.to_string().as_bytes())?;
        drop(stdin);
        let output = child.wait_with_output().context("the plugin vanished")?;
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        let printed = if printed.trim().is_empty() {
            Value::Null
        } else {
            serde_json::from_str(&printed).with_context(|| format!("no JSON: {printed}"))?
        };
        Ok(Ended {
            good: output.status.success(),
            printed,
        })
    }

    /// Starts a pod: whether the plugin lets it, and hands on what those before it have made.
    ///
    /// # Errors
    /// If it does not; with what it says.
    pub fn add(&self, sandbox: &Sandbox) -> Result<()> {
        let ended = self.run("ADD", sandbox)?;
        ensure!(
            ended.good && ended.printed == sandbox.result(),
            "the pod may not start: {ended:?}"
        );
        Ok(())
    }
}
