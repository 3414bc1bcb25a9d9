//! Many page loads and what they showed: the client's side in a pod, and the scenario's outside of it.

use std::fmt;
use std::io::{Read as _, stdin};
use std::process::{Child, Command, Stdio};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

/// How long an ended load may take for its last page.
const LAST_PAGE_WITHIN: Duration = Duration::from_secs(20);

/// What pages showed. As text, one line: `no_stars=90 black=10 red=0 failed=0 why=`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Pages by reviews v1.
    pub no_stars: usize,
    /// Pages by reviews v2.
    pub black: usize,
    /// Pages by reviews v3.
    pub red: usize,
    /// Loads that brought no page.
    pub failed: usize,
    /// What the first of them said.
    pub why: String,
}

impl Tally {
    /// How many pages were loaded or failed.
    pub fn total(&self) -> usize {
        self.no_stars + self.black + self.red + self.failed
    }

    /// Loads a page once more and counts it.
    pub fn load(&mut self, url: &str) {
        match page(url) {
            Ok(html) if html.contains("color:black") => self.black += 1,
            Ok(html) if html.contains("color:red") => self.red += 1,
            Ok(_) => self.no_stars += 1,
            Err(error) => {
                self.failed += 1;
                if self.why.is_empty() {
                    self.why = format!("{error:#}").replace('\n', " ");
                }
            }
        }
    }
}

/// A page of the shop with its reviews.
fn page(url: &str) -> Result<String> {
    let response = super::fetch(url)?;
    let text = response.text();
    ensure!(response.status == 200, "{}: {text}", response.status);
    ensure!(text.contains("Reviewer1"), "a page without reviews: {text}");
    Ok(text)
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            no_stars,
            black,
            red,
            failed,
            why,
        } = self;
        write!(
            f,
            "no_stars={no_stars} black={black} red={red} failed={failed} why={why}"
        )
    }
}

impl FromStr for Tally {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (counts, why) = text.trim().split_once(" why=").context("no tally")?;
        let count = |name: &str| {
            let mut pairs = counts.split(' ').filter_map(|pair| pair.split_once('='));
            let found = pairs.find(|(key, _)| *key == name);
            let (_, value) = found.with_context(|| format!("no {name} in `{counts}`"))?;
            value.parse().context("no number")
        };
        Ok(Self {
            no_stars: count("no_stars")?,
            black: count("black")?,
            red: count("red")?,
            failed: count("failed")?,
            why: why.to_owned(),
        })
    }
}

/// Loads a page over and over until standard input ends: the program's side.
pub fn until_input_ends(url: &str) -> Tally {
    let ended = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&ended);
    thread::spawn(move || {
        // Whatever comes, and however it ends, is the end.
        drop(stdin().read_to_end(&mut Vec::new()));
        flag.store(true, Ordering::Relaxed);
    });
    let mut tally = Tally::default();
    while !ended.load(Ordering::Relaxed) {
        tally.load(url);
    }
    tally
}

/// A running client that loads a page over and over: the scenario's side.
pub struct Load(Child);

impl Load {
    pub(super) fn start(command: &mut Command) -> Result<Self> {
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        Ok(Self(child.context("the client cannot be started")?))
    }

    /// Ends it and returns what the pages showed.
    ///
    /// # Errors
    /// If it does not end, or not well.
    pub fn end(mut self) -> Result<Tally> {
        drop(self.0.stdin.take());
        let mut stdout = self.0.stdout.take().context("the client has no output")?;
        let begun = Instant::now();
        let mut text = String::new();
        stdout.read_to_string(&mut text)?;
        ensure!(
            begun.elapsed() < LAST_PAGE_WITHIN,
            "its last page took too long"
        );
        ensure!(self.0.wait()?.success(), "the client failed");
        text.parse()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // It may have ended already; then there is nothing to end.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

#[cfg(test)]
mod tests {
    use super::Tally;

    #[test]
    fn a_tally_survives_its_text() {
        let tally = Tally {
            no_stars: 3,
            failed: 1,
            why: "403: RBAC: access denied".to_owned(),
            ..Tally::default()
        };
        assert_eq!(tally.to_string().parse::<Tally>().unwrap(), tally);
        assert_eq!(tally.total(), 4);
    }
}
