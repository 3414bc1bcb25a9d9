//! `culvert cni`: the plugin put in place and taken out by hand. A running agent does it by itself.

use std::io::Write;
use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::CliError;
use crate::cni::{Installation, SOCKET, StartWithoutAgent};

/// What to do with the plugin.
#[derive(Clone, Debug, PartialEq, Eq, Subcommand)]
pub enum CniCommand {
    /// Put the plugin into the runtime's directory and its entry into the network's configuration, wherever either is
    /// missing or another one. May be repeated; an agent with the same flags repeats it whenever somebody changes them.
    Install(InstallArgs),
    /// Put the entry back into the network's configuration, if somebody has changed it. The program stays as it is.
    Repair(InstallArgs),
    /// Take both out again. Pods start without the mesh afterwards.
    Uninstall(PlaceArgs),
}

/// Where the container runtime looks.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct PlaceArgs {
    /// Directory of the container runtime's network configurations.
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    pub cni_conf_dir: PathBuf,
    /// Directory of its plugins.
    #[arg(long, value_name = "DIR", default_value = "/opt/cni/bin")]
    pub cni_bin_dir: PathBuf,
}

/// Arguments of `culvert cni install`.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct InstallArgs {
    /// Where.
    #[command(flatten)]
    pub place: PlaceArgs,
    /// The run directory of the agent that the plugin asks.
    #[arg(long, value_name = "DIR", default_value = "/run/culvert")]
    pub run_dir: PathBuf,
    /// Which pods do not wait for it.
    #[command(flatten)]
    pub without_agent: StartWithoutAgent,
}

impl InstallArgs {
    fn installation(&self) -> Installation {
        Installation {
            conf_dir: self.place.cni_conf_dir.clone(),
            bin_dir: self.place.cni_bin_dir.clone(),
            socket: self.run_dir.join(SOCKET),
            start_without_agent: self.without_agent.namespaces(),
        }
    }
}

impl PlaceArgs {
    /// Takes program and entry out; gives the files that were changed.
    pub(super) fn uninstall(&self) -> Result<Vec<PathBuf>, CliError> {
        let installation = Installation {
            conf_dir: self.cni_conf_dir.clone(),
            bin_dir: self.cni_bin_dir.clone(),
            socket: PathBuf::new(),
            start_without_agent: std::collections::BTreeSet::new(),
        };
        Ok(installation.uninstall()?)
    }
}

impl CniCommand {
    pub(super) fn run(&self, out: &mut impl Write) -> Result<(), CliError> {
        let changed = match self {
            Self::Install(args) | Self::Repair(args) => {
                let installation = args.installation();
                let changed = match self {
                    Self::Install(_) => installation.install()?,
                    _ => installation.repair()?,
                };
                if !installation.has_network()? {
                    return Err(CliError::NoNetwork {
                        directory: args.place.cni_conf_dir.clone(),
                    });
                }
                changed
            }
            Self::Uninstall(place) => place.uninstall()?,
        };
        for path in &changed {
            writeln!(out, "changed {}", path.display()).map_err(CliError::Write)?;
        }
        if changed.is_empty() {
            writeln!(out, "nothing to change").map_err(CliError::Write)?;
        }
        Ok(())
    }
}
