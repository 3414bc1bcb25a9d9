//! What was typed: which loads on which planes, how often and how long.

use std::path::PathBuf;

use clap::Parser;

use super::load::{LOADS, Load};
use super::plane::Plane;

/// Name of the measurement of an agent that has nothing to do.
const IDLE: &str = "idle";

/// Rates, latencies, CPU and memory of Culvert beside no mesh and beside others, in turns. Writes
/// target/bench/report.html, report.md and report.json.
#[derive(Clone, Debug, PartialEq, Eq, Parser)]
#[command(
    name = "cargo xtask bench",
    after_help = "Needs wrk, iperf3, nginx (packages wrk, iperf3, nginx-light), for the plane `iptables` that program, and Envoy, \
                  which `cargo xtask setup` fetches. A peer's command is run by a shell in both pods and finds BENCH_ROLE, BENCH_POD_IP, \
                  BENCH_PEER_IP, BENCH_PORTS, BENCH_IDENTITY, BENCH_PEER_IDENTITY, BENCH_CERT_CHAIN, BENCH_KEY and BENCH_ROOT in its \
                  environment."
)]
pub struct Options {
    /// ROUNDS, SECONDS and a NAME of loads or planes, as the flags of these names: `5 4 L7`
    #[arg(value_name = "ROUNDS [SECONDS [NAME]]", num_args = 0..=3)]
    words: Vec<String>,
    /// How often each load runs on each plane [default: 5]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// How long each run is [default: 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    seconds: Option<u32>,
    /// 1 round of 1 s: whether everything works
    #[arg(long, conflicts_with_all = ["rounds", "seconds", "words"])]
    quick: bool,
    /// Only loads whose names contain this; may be repeated. `idle` is also an agent without work
    #[arg(long = "load", value_name = "NAME")]
    load_names: Vec<String>,
    /// Only planes whose names are this; may be repeated. Name what they are to be compared with too
    #[arg(long = "plane", value_name = "NAME")]
    plane_names: Vec<String>,
    /// Somebody else's data plane, started by a command in both pods
    #[arg(long = "peer", value_name = "NAME=COMMAND", value_parser = Plane::peer)]
    peers: Vec<Plane>,
    /// Show the runs of an earlier report beside these, without ratios to them; may be repeated
    #[arg(long, value_name = "REPORT.JSON")]
    pub beside: Vec<PathBuf>,
    /// List loads and planes, and run nothing
    #[arg(long)]
    pub list: bool,
}

/// What is to be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// How often.
    pub rounds: u32,
    /// How long each.
    pub seconds: u32,
    /// In the order of the report.
    pub loads: Vec<Load>,
    /// In turns.
    pub planes: Vec<Plane>,
    /// Whether an agent without work is watched.
    pub idle: bool,
}

impl Options {
    /// Every plane that could be asked for.
    pub fn planes(&self) -> Vec<Plane> {
        [&Plane::OWN[..], &self.peers].concat()
    }

    /// What is asked for.
    ///
    /// # Errors
    /// One sentence, if a name is that of nothing or a number is none.
    pub fn select(&self) -> Result<Selection, String> {
        let mut words = self.words.iter();
        let mut number = |flag: Option<u32>, default: u32| match words.next() {
            Some(text) => match text.parse() {
                Ok(number) if number > 0 => Ok(number),
                _ => Err(format!("`{text}` is no number above 0")),
            },
            None => Ok(flag.unwrap_or(default)),
        };
        let (rounds, seconds) = if self.quick { (1, 1) } else { (5, 4) };
        let rounds = number(self.rounds, rounds)?;
        let seconds = number(self.seconds, seconds)?;
        let mut selection = Selection {
            rounds,
            seconds,
            loads: LOADS.to_vec(),
            planes: self.planes(),
            idle: true,
        };
        if !self.load_names.is_empty() {
            let names = &self.load_names;
            selection.idle = names.iter().any(|name| IDLE.contains(&**name));
            selection
                .loads
                .retain(|load| names.iter().any(|name| load.name.contains(&**name)));
            if selection.loads.is_empty() {
                return Err(format!(
                    "no load is called {}: see --list",
                    names.join(" or ")
                ));
            }
        }
        if !self.plane_names.is_empty() {
            for name in &self.plane_names {
                if !selection.planes.iter().any(|plane| plane.name() == name) {
                    return Err(format!("no plane is called {name}: see --list"));
                }
            }
            selection
                .planes
                .retain(|plane| self.plane_names.iter().any(|name| plane.name() == name));
            selection.idle &= self.plane_names.is_empty() || !self.load_names.is_empty();
        }
        match words.next() {
            Some(name) => selection.narrowed(name),
            None => Ok(selection),
        }
    }
}

impl Selection {
    /// Only loads with this in their names, or planes with it and what they are compared with.
    fn narrowed(mut self, name: &str) -> Result<Self, String> {
        let has_name = |plane: &&Plane| plane.name().contains(name);
        let wanted: Vec<Plane> = self.planes.iter().filter(has_name).cloned().collect();
        self.idle = IDLE.contains(name);
        if self.loads.iter().any(|load| load.name.contains(name)) {
            self.loads.retain(|load| load.name.contains(name));
            return Ok(self);
        }
        if wanted.is_empty() {
            return Err(format!("no load and no plane is called {name}: see --list"));
        }
        let is_needed = |plane: &Plane| {
            wanted.iter().any(|wanted| {
                wanted == plane
                    || wanted.baseline() == *plane
                    || wanted.rivals(&self.planes).contains(plane)
            })
        };
        let planes = self
            .planes
            .iter()
            .filter(|plane| is_needed(plane))
            .cloned()
            .collect();
        self.planes = planes;
        self.loads
            .retain(|load| wanted.iter().any(|plane| load.suits(plane)));
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::{Options, Plane, Selection};

    fn select(line: &str) -> Result<Selection, String> {
        let words = ["bench"].into_iter().chain(line.split_whitespace());
        let options = Options::try_parse_from(words).map_err(|error| error.to_string())?;
        options.select()
    }

    #[test]
    fn numbers_are_words_or_flags() {
        for (line, expected) in [
            ("", (5, 4)),
            ("3", (3, 4)),
            ("3 2", (3, 2)),
            ("--rounds 3 --seconds 2", (3, 2)),
            ("--quick", (1, 1)),
        ] {
            let selection = select(line).unwrap();
            assert_eq!((selection.rounds, selection.seconds), expected, "{line}");
        }
        for line in [
            "x",
            "0",
            "1 0",
            "1 1 nothing",
            "1 1 L7 x",
            "--rounds 0",
            "--quick 3",
            "--peer none=x",
        ] {
            assert!(select(line).is_err(), "{line}");
        }
    }

    #[test]
    fn names_choose_loads_and_planes() {
        let all = select("").unwrap();
        assert_eq!(all.planes.len(), 9);
        assert!(all.idle);
        let some = select("--load stream --load idle --plane none --plane culvert-L4").unwrap();
        assert_eq!(some.loads.len(), 5);
        assert_eq!(some.planes, [Plane::None, Plane::L4]);
        assert!(some.idle);
        let one = select("--load c=64 --plane culvert-L4").unwrap();
        assert_eq!((one.loads.len(), one.planes.len(), one.idle), (1, 1, false));
        for line in ["--load nothing", "--plane culvert"] {
            assert!(select(line).is_err(), "{line}");
        }
    }

    #[test]
    fn a_third_word_brings_what_is_compared() {
        let layer7 = select("5 4 L7").unwrap();
        assert_eq!(layer7.planes, [Plane::None, Plane::L7, Plane::Envoy]);
        assert!(layer7.loads.iter().all(|load| load.suits(&Plane::L7)));
        assert!(!layer7.idle);
        let idle = select("1 10 idle").unwrap();
        assert_eq!((idle.loads.len(), idle.idle), (1, true));
        let stream = select("1 1 one").unwrap();
        assert!(stream.loads.iter().all(|load| load.name.contains("one")));
    }
}
