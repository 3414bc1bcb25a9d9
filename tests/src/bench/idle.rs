//! What an agent takes that has nothing to do.

use std::fmt;
use std::time::Duration;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::machine::cpu_time_us;
use crate::lab::Lab;

/// An agent with captured pods and no traffic.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Idle {
    /// Pods that it has captured.
    pub pods: usize,
    /// Resident memory in KiB, its program's text included.
    pub rss_kib: u64,
    /// CPU time in microseconds for each second.
    pub cpu_us: f64,
}

impl Idle {
    /// Captures `pods` pods on one node and watches their agent for `time`.
    ///
    /// # Errors
    /// If the lab or an agent does not come up, or the agent is gone.
    pub fn measure(pods: usize, time: Duration) -> Result<Self> {
        let mut lab = Lab::two_nodes()?;
        for number in 0..pods {
            drop(lab.pod("a", &format!("idle{number}"))?);
        }
        lab.start()?;
        let agent = lab.agent("a")?;
        let before = cpu_time_us(agent.pid())?;
        // There is nothing to wait for but time itself.
        std::thread::sleep(time);
        let used = cpu_time_us(agent.pid())? - before;
        Ok(Self {
            pods,
            rss_kib: agent.rss_kib()?,
            cpu_us: used / time.as_secs_f64(),
        })
    }
}

impl fmt::Display for Idle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "idle with {} pods: {} KiB resident, {:.0} us of CPU a second",
            self.pods, self.rss_kib, self.cpu_us
        )
    }
}
