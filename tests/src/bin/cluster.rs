//! `cargo xtask cluster`: an API server with Kubernetes' controllers and an istiod on loopback, with the custom resources
//! of the mesh, until it is interrupted.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for people at a terminal"
)]

use std::env;
use std::fs;
use std::process::{self, ExitCode};
use std::sync::mpsc;

use anyhow::{Context as _, Result};
use e2e::kubernetes::{ApiServer, Controllers, Definitions, Istiod};
use nix::sys::signal::{SigSet, Signal};

/// Where Kubernetes' own manual has it.
const PORT: u16 = 6443;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    // Before any thread is started, because threads inherit what they do not hear.
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    signals
        .thread_block()
        .context("signals cannot be held back")?;
    let (interrupted, wait) = mpsc::channel();
    std::thread::spawn(move || {
        // Whatever comes of it: somebody wants an end.
        let _signal = signals.wait();
        let _told = interrupted.send(());
    });
    let directory = env::temp_dir().join(format!("culvert-cluster-{}", process::id()));
    let served = serve(&directory, &wait);
    drop(fs::remove_dir_all(&directory));
    served
}

fn serve(directory: &std::path::Path, wait: &mpsc::Receiver<()>) -> Result<()> {
    println!("starting etcd and kube-apiserver on 127.0.0.1:{PORT}");
    let api = ApiServer::on_loopback(directory, PORT)?;
    println!("installing the custom resources of Gateway API, Istio and Culvert");
    Definitions::ALL
        .into_iter()
        .try_for_each(|group| api.install(group))?;
    api.deploy()?;
    println!("starting kube-controller-manager and istiod");
    let _controllers = Controllers::beside(&api)?;
    let istiod = Istiod::beside(&api)?;
    let agent = api.account_kubeconfig("culvert-system", "culvert-agent")?;
    println!(
        "\nthe administrator:   export KUBECONFIG={}",
        api.admin_kubeconfig().display()
    );
    println!(
        "as the agent's account: culvert agent --node NAME --kubernetes --kubeconfig {}",
        agent.display()
    );
    println!(
        "with layer 4 and identities of istiod, besides:\n  {}\n  {}",
        istiod.agent_options().join(" "),
        istiod.authority_options().join(" ")
    );
    println!("\nCtrl-C ends it.");
    // An error is the end of the thread that waits, which is an interruption, too.
    let _interrupted = wait.recv();
    Ok(())
}
