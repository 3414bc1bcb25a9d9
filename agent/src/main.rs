//! The `culvert` program: arguments in, exit code out.

use std::process::ExitCode;

use agent::cli;
use agent::config::AgentArgs;
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
    #[command(flatten)]
    Operate(cli::Command),
}

fn main() -> ExitCode {
    match Program::parse().command {
        Command::Agent(args) => match agent::app::run(&args) {
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
