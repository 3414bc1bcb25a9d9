//! The CNI plugin: it keeps a pod from starting before the agent has captured it.
//!
//! ```text
//!  runtime ── environment, stdin ─▶ culvert-cni (plugin, invocation) ── protocol ─▶ agent (server) ─▶ Gate
//!                                     ▲ program and entry in the network's configuration (installation, conflist)
//!                                     └── kept in place by the agent (keeper)
//! ```

mod conflist;
mod installation;
mod invocation;
mod keeper;
mod plugin;
mod protocol;
mod server;
mod unattended;

use conflist::TYPE;

pub use installation::{Installation, InstallationError};
pub use plugin::{is_name_of_plugin, run};
pub use unattended::StartWithoutAgent;

pub(crate) use keeper::Keeper;
pub(crate) use protocol::{Command, Outcome, Sandbox};
pub(crate) use server::{Gate, ListenError, PluginSocket};

/// The plugin's socket in an agent's run directory.
pub const SOCKET: &str = "cni.sock";
