//! The `culvert` program: arguments in, exit code out.

use std::process::ExitCode;

use agent::config::{AgentArgs, ControllerArgs};
use agent::{cli, cni};
use clap::{Parser, Subcommand};

/// A node agent for service meshes: eBPF capture, HBONE on `io_uring`, Istio's objects.
#[derive(Parser)]
#[command(name = "culvert", version)]
struct Program {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run this node's agent.
    Agent(Box<AgentArgs>),
    /// Run the cluster's controller, which writes statuses; of several one writes.
    Controller(Box<ControllerArgs>),
    #[command(flatten)]
    Operate(cli::Command),
}

fn main() -> ExitCode {
    if cni::is_name_of_plugin(std::env::args_os().next().as_ref()) {
        let (mut input, mut out) = (std::io::stdin().lock(), std::io::stdout().lock());
        return cni::run(|name| std::env::var_os(name), &mut input, &mut out);
    }
    match Program::parse().command {
        Command::Agent(args) => match agent::app::run(&args) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(format_args!("{error:#}"), ExitCode::FAILURE),
        },
        Command::Controller(args) => match agent::app::run_controller(&args) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(format_args!("{error:#}"), ExitCode::FAILURE),
        },
        Command::Operate(command) => {
            let done = command.run(&mut std::io::stdout().lock());
            done.unwrap_or_else(|error| {
                fail(format_args!("{}", error.sentence()), error.exit_code())
            })
        }
    }
}

#[expect(
    clippy::print_stderr,
    reason = "the one place where the program says why it failed"
)]
fn fail(why: std::fmt::Arguments<'_>, code: ExitCode) -> ExitCode {
    eprintln!("culvert: {why}");
    code
}
