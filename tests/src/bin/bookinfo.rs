//! Bookinfo's services and a client, each a process in its own pod.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for people at a terminal"
)]

use std::process::ExitCode;

use anyhow::{Result, bail};
use e2e::bookinfo;
use e2e::bookinfo::load::{self, Tally};

const USAGE: &str =
    "usage: bookinfo serve DEPLOYMENT | get URL | post URL | count TIMES URL | load URL";

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
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["serve", deployment] => bookinfo::serve(deployment.parse()?),
        ["get", url] => show("GET", url),
        ["post", url] => show("POST", url),
        ["count", times, url] => {
            let mut tally = Tally::default();
            for _ in 0..times.parse::<usize>()? {
                tally.load(url);
            }
            println!("{tally}");
            Ok(())
        }
        ["load", url] => {
            println!("{}", load::until_input_ends(url));
            Ok(())
        }
        _ => bail!(USAGE),
    }
}

/// Prints what a server answers; an answer of 400 or more is a failure.
fn show(method: &str, url: &str) -> Result<()> {
    let response = bookinfo::request(method, url)?;
    print!("{}", response.text());
    if response.status >= 400 {
        bail!("the server answers {}", response.status);
    }
    Ok(())
}
