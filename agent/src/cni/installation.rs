//! The plugin in its place on a node: the program among the runtime's plugins, and our entry in the network's
//! configuration. Idempotent both ways.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::conflist::{self, Configuration, TYPE};

/// What a configuration of a single plugin is called while a list stands in for it; runtimes do not read it.
const KEPT: &str = "before-culvert";
/// What runtimes read, in the order of the files' names (libcni's `ConfFiles`).
const EXTENSIONS: [&str; 3] = ["conf", "conflist", "json"];

/// Where the plugin belongs, and what its entry says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installation {
    /// The runtime's directory of network configurations.
    pub conf_dir: PathBuf,
    /// Its directory of plugins.
    pub bin_dir: PathBuf,
    /// Where the agent listens.
    pub socket: PathBuf,
    /// Namespaces whose pods do not wait for an agent.
    pub start_without_agent: BTreeSet<String>,
}

/// The plugin cannot be put in or taken out.
#[derive(Debug, thiserror::Error)]
pub enum InstallationError {
    /// A file of the runtime's.
    #[error("cannot {action} {}", path.display())]
    File {
        /// What was to be done with it.
        action: &'static str,
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The runtime looks for plugins elsewhere: it would not find ours, and start no pod at all.
    #[error(
        "plugin `{plugin}` of {list} is not in {}: name the directory that the runtime finds its plugins in (cni.binDir, --cni-bin-dir)",
        directory.display()
    )]
    Elsewhere {
        /// The plugin that is not there.
        plugin: String,
        /// The configuration that names it.
        list: String,
        /// Where it was looked for.
        directory: PathBuf,
    },
}

impl InstallationError {
    /// Whether the kernel does not let us.
    pub(super) fn is_denied(&self) -> bool {
        matches!(self, Self::File { source, .. } if source.kind() == io::ErrorKind::PermissionDenied)
    }
}

/// A change of the runtime's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Change {
    Write { name: String, text: String },
    Rename { from: String, to: String },
    Remove { name: String },
}

/// What there is to do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Plan {
    changes: Vec<Change>,
    /// Whether there is a network to chain to.
    has_network: bool,
    /// A plugin of that network's that is not where ours would be, and the configuration that names it: then nothing is
    /// chained.
    elsewhere: Option<(String, String)>,
}

impl Installation {
    /// Puts the program and the entry in place, where they are not. Gives the files that were changed.
    ///
    /// # Errors
    /// [`InstallationError`].
    pub fn install(&self) -> Result<Vec<PathBuf>, InstallationError> {
        let mut changed = self.install_program()?;
        changed.extend(self.repair()?);
        Ok(changed)
    }

    /// Puts the entry into the network's configuration, where it is not. Gives the files that were changed; none where
    /// there is no network yet.
    ///
    /// # Errors
    /// [`InstallationError`].
    pub fn repair(&self) -> Result<Vec<PathBuf>, InstallationError> {
        let plan = self.plan()?;
        let changed = self.carry_out(plan.changes)?;
        match plan.elsewhere {
            Some((plugin, list)) => Err(InstallationError::Elsewhere {
                plugin,
                list,
                directory: self.bin_dir.clone(),
            }),
            None => Ok(changed),
        }
    }

    fn plan(&self) -> Result<Plan, InstallationError> {
        // A link is a plugin, too, wherever it leads: out of a container's sight, where the host's directory is mounted.
        let is_there = |plugin: &str| self.bin_dir.join(plugin).symlink_metadata().is_ok();
        Ok(plan_install(&self.files()?, &self.entry(), is_there))
    }

    /// Whether the runtime's directory holds a network's configuration.
    ///
    /// # Errors
    /// [`InstallationError`].
    pub fn has_network(&self) -> Result<bool, InstallationError> {
        Ok(self.plan()?.has_network)
    }

    /// Takes both out again, the entry first. Gives the files that were changed.
    ///
    /// # Errors
    /// [`InstallationError`].
    pub fn uninstall(&self) -> Result<Vec<PathBuf>, InstallationError> {
        let mut changed = self.carry_out(plan_uninstall(&self.files()?))?;
        let program = self.bin_dir.join(TYPE);
        match fs::remove_file(&program) {
            Ok(()) => changed.push(program),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(failed("remove", &program)(source)),
        }
        Ok(changed)
    }

    fn entry(&self) -> Value {
        let mut entry = json!({ "type": TYPE, "socket": self.socket });
        if !self.start_without_agent.is_empty() {
            entry["startWithoutAgent"] = json!(self.start_without_agent);
        }
        entry
    }

    /// This very program: it is linked statically, so it runs on any node.
    fn install_program(&self) -> Result<Vec<PathBuf>, InstallationError> {
        let own = Path::new("/proc/self/exe");
        let program = self.bin_dir.join(TYPE);
        let wanted = fs::read(own).map_err(failed("read", own))?;
        if fs::read(&program).is_ok_and(|there| there == wanted) {
            return Ok(Vec::new());
        }
        replace(&program, &wanted, None, 0o755)?;
        Ok(vec![program])
    }

    /// The files that a runtime may read, and those that we keep for later.
    fn files(&self) -> Result<BTreeMap<String, String>, InstallationError> {
        let mut files = BTreeMap::new();
        let listing = fs::read_dir(&self.conf_dir).map_err(failed("list", &self.conf_dir))?;
        for entry in listing {
            let path = entry.map_err(failed("list", &self.conf_dir))?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            let Some(name) = name.filter(|name| extension(name).is_some() || is_kept(name)) else {
                continue;
            };
            match fs::read(&path) {
                // What is no text is no configuration.
                Ok(bytes) => {
                    if let Ok(text) = String::from_utf8(bytes) {
                        files.insert(name.to_owned(), text);
                    }
                }
                // Renamed away in this moment.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(failed("read", &path)(source)),
            }
        }
        Ok(files)
    }

    fn carry_out(&self, changes: Vec<Change>) -> Result<Vec<PathBuf>, InstallationError> {
        let mut files = Vec::new();
        for change in changes {
            let name = match &change {
                Change::Write { name, .. } | Change::Remove { name } => name,
                Change::Rename { to, .. } => to,
            };
            let path = self.conf_dir.join(name);
            match &change {
                Change::Write { text, .. } => {
                    let like = fs::metadata(&path).ok();
                    replace(&path, text.as_bytes(), like.as_ref(), 0o600)?;
                }
                Change::Remove { .. } => fs::remove_file(&path).map_err(failed("remove", &path))?,
                Change::Rename { from, .. } => {
                    fs::rename(self.conf_dir.join(from), &path).map_err(failed("write", &path))?;
                }
            }
            files.push(path);
        }
        Ok(files)
    }
}

/// What puts `entry` into the configuration that the runtime uses, if the directory of plugins `has` its others, and takes
/// it out of every other.
fn plan_install(
    files: &BTreeMap<String, String>,
    entry: &Value,
    has: impl Fn(&str) -> bool,
) -> Plan {
    let mut plan = Plan::default();
    for (name, text) in files {
        if extension(name).is_none() {
            continue;
        }
        let Some(configuration) = conflist::read(text) else {
            continue;
        };
        let is_used = !plan.has_network;
        if is_used && let Some(plugin) = configuration.others().find(|plugin| !has(plugin)) {
            plan.has_network = true;
            plan.elsewhere = Some((plugin.to_owned(), name.clone()));
            continue;
        }
        match configuration {
            Configuration::List(list) if is_used => {
                plan.has_network = true;
                plan.changes
                    .extend(list.with(entry).map(|text| Change::Write {
                        name: name.clone(),
                        text,
                    }));
            }
            Configuration::Single(single) if is_used => {
                plan.has_network = true;
                let name = name.clone();
                let list = format!("{}.conflist", stem(&name));
                let text = conflist::list_of(&single, entry);
                // The list first: a moment with two is a moment with one too many, and not with none.
                plan.changes.push(Change::Write { name: list, text });
                plan.changes.push(Change::Rename {
                    to: format!("{name}.{KEPT}"),
                    from: name,
                });
            }
            Configuration::List(list) => {
                // What stands in for a single plugin is used next time.
                let is_stand_in = plan.changes.iter().any(|change| {
                    matches!(change, Change::Write { name: written, .. } if written == name)
                });
                let without = list.without().filter(|_| !is_stand_in);
                plan.changes.extend(without.map(|text| Change::Write {
                    name: name.clone(),
                    text,
                }));
            }
            Configuration::Single(_) => {}
        }
    }
    plan
}

/// What takes every entry of ours out, and puts back what a list stood in for.
fn plan_uninstall(files: &BTreeMap<String, String>) -> Vec<Change> {
    let mut changes = Vec::new();
    let mut stand_ins = BTreeSet::new();
    for name in files.keys().filter(|name| is_kept(name)) {
        let original = name.trim_end_matches(KEPT).trim_end_matches('.');
        changes.push(Change::Rename {
            from: name.clone(),
            to: original.to_owned(),
        });
        stand_ins.insert(format!("{}.conflist", stem(original)));
    }
    for (name, text) in files {
        let Some(Configuration::List(list)) = conflist::read(text).filter(|_| !is_kept(name))
        else {
            continue;
        };
        if stand_ins.contains(name) && list.has_entry() {
            changes.push(Change::Remove { name: name.clone() });
        } else if let Some(text) = list.without() {
            changes.push(Change::Write {
                name: name.clone(),
                text,
            });
        }
    }
    changes
}

fn extension(name: &str) -> Option<&str> {
    let (_, extension) = name.rsplit_once('.')?;
    EXTENSIONS.contains(&extension).then_some(extension)
}

fn stem(name: &str) -> &str {
    name.rsplit_once('.').map_or(name, |(stem, _)| stem)
}

fn is_kept(name: &str) -> bool {
    name.rsplit_once('.').is_some_and(|(_, last)| last == KEPT)
}

/// Writes a file whole or not at all, with the owner and mode of the one before.
fn replace(
    path: &Path,
    contents: &[u8],
    like: Option<&fs::Metadata>,
    mode: u32,
) -> Result<(), InstallationError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // No extension that a runtime reads.
    let draft = path.with_file_name(format!(".{name}.culvert-new"));
    let write = || {
        let mut file = File::create(&draft)?;
        let mode = like.map_or(mode, |like| like.permissions().mode());
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        if let Some(like) = like {
            chown(&draft, Some(like.uid()), Some(like.gid()))?;
        }
        file.write_all(contents)?;
        file.sync_all()?;
        fs::rename(&draft, path)
    };
    write().map_err(|source| {
        // What is half written is of no use to anybody.
        drop(fs::remove_file(&draft));
        failed("write", path)(source)
    })
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> InstallationError {
    let path = path.to_owned();
    move |source| InstallationError::File {
        action,
        path,
        source,
    }
}

#[cfg(test)]
mod tests;
