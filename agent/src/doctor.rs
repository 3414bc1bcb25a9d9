//! `culvert doctor`: what this node lacks, and what that costs.
//!
//! A table of requirements, each with a probe that tries the thing itself: distributions back-port and
//! disable features, so a version number proves nothing.

use std::{error::Error, fmt::Write as _};

use serde::Serialize;

use userspace_l7::ring;

use crate::{capture::probe, privilege};

/// Whether the agent runs without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Need {
    /// The agent does not start.
    Required,
    /// The agent runs, with less.
    Optional,
}

/// One thing the agent uses.
pub(crate) struct Requirement {
    /// What it is.
    pub(crate) name: &'static str,
    /// Whether the agent runs without it.
    pub(crate) need: Need,
    /// What is lost without it.
    pub(crate) cost: &'static str,
    /// Tries it.
    pub(crate) probe: fn() -> Result<(), Box<dyn Error + Send + Sync>>,
}

/// What became of one requirement.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    /// What it is.
    pub(crate) name: &'static str,
    /// Whether the agent runs without it.
    pub(crate) need: Need,
    /// Whether it is there.
    pub(crate) present: bool,
    /// If it is not: why, and what is lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) missing: Option<Missing>,
}

/// Why a thing is missing and what that costs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Missing {
    /// The cause, as the kernel gave it.
    pub(crate) reason: String,
    /// What is lost.
    pub(crate) cost: &'static str,
}

/// Everything capture needs, in the order in which it is needed.
pub(crate) const REQUIREMENTS: [Requirement; 14] = [
    Requirement {
        name: "capabilities",
        need: Need::Required,
        cost: "no pod can be captured: the agent needs CAP_BPF, CAP_NET_ADMIN, CAP_NET_RAW, CAP_PERFMON and CAP_SYS_ADMIN",
        probe: capabilities,
    },
    Requirement {
        name: "cgroup2 hierarchy",
        need: Need::Required,
        cost: "no pod can be captured: there is nothing to attach the programs to",
        probe: probe::cgroup2,
    },
    Requirement {
        name: "bpf file system",
        need: Need::Required,
        cost: "no pod can be captured: capture could not outlive the agent",
        probe: probe::bpffs,
    },
    Requirement {
        name: "kernel BTF",
        need: Need::Required,
        cost: "no pod can be captured: the agent's own sockets could not be told from others",
        probe: probe::btf,
    },
    Requirement {
        name: "netns cookies (5.14)",
        need: Need::Required,
        cost: "no pod can be captured: pods could not be told apart",
        probe: probe::netns_cookie,
    },
    Requirement {
        name: "cgroup programs (5.15)",
        need: Need::Required,
        cost: "no pod can be captured",
        probe: probe::cgroup_programs,
    },
    Requirement {
        name: "sk_lookup program (5.9)",
        need: Need::Required,
        cost: "no pod can be captured",
        probe: probe::sk_lookup,
    },
    Requirement {
        name: "policy routing",
        need: Need::Required,
        cost: "no pod can be captured: marked connections could not loop back to the agent",
        probe: probe::policy_routing,
    },
    Requirement {
        name: "transparent sockets",
        need: Need::Required,
        cost: "no pod can be captured: the agent could not answer for other addresses",
        probe: probe::transparent_sockets,
    },
    Requirement {
        name: "bpf_set_retval (5.18)",
        need: Need::Optional,
        cost: "connections that are refused fail with EPERM instead of ECONNREFUSED",
        probe: probe::set_retval,
    },
    Requirement {
        name: "tcx links (6.6)",
        need: Need::Optional,
        cost: "connections to closed ports of a pod, and those of pods to whoever does not answer, are accepted and reset instead of refused",
        probe: probe::tcx,
    },
    Requirement {
        name: "TCP byte counts in BTF",
        need: Need::Optional,
        cost: "pods of this node reach each other through the proxy: what the kernel carried by itself could not be accounted for",
        probe: probe::tcp_byte_counts,
    },
    Requirement {
        name: "socket destruction",
        need: Need::Optional,
        cost: "live connections outlast the policy or the capture they were made under",
        probe: probe::destroy_sockets,
    },
    Requirement {
        name: "io_uring",
        need: Need::Optional,
        cost: "workers wait for their sockets by epoll",
        probe: || Ok(ring::probe()?),
    },
];

/// Tries every requirement.
pub(crate) fn examine(requirements: &[Requirement]) -> Vec<Finding> {
    requirements.iter().map(examine_one).collect()
}

fn examine_one(requirement: &Requirement) -> Finding {
    let Requirement {
        name,
        need,
        cost,
        probe,
    } = *requirement;
    let missing = probe().err().map(|error| Missing {
        reason: first_lines(&*error),
        cost,
    });
    Finding {
        name,
        need,
        present: missing.is_none(),
        missing,
    }
}

/// Whether the agent can start.
pub(crate) fn is_fit(findings: &[Finding]) -> bool {
    findings
        .iter()
        .all(|finding| finding.present || finding.need == Need::Optional)
}

/// The findings for people: one line each, and below a missing thing why and what it costs.
pub(crate) fn table(findings: &[Finding]) -> String {
    let width = findings
        .iter()
        .map(|finding| finding.name.len())
        .max()
        .unwrap_or_default();
    let mut table = String::new();
    for finding in findings {
        let state = match (finding.present, finding.need) {
            (true, _) => "ok",
            (false, Need::Required) => "MISSING",
            (false, Need::Optional) => "missing",
        };
        let _infallible = writeln!(table, "{:width$}  {state}", finding.name);
        if let Some(Missing { reason, cost }) = &finding.missing {
            let _infallible = writeln!(table, "{:width$}  {reason}\n{:width$}  {cost}", "", "");
        }
    }
    table
}

/// The chain of causes on one line. The verifier's log, which follows a program's error on lines of its
/// own, is for those who load the program by hand.
fn first_lines(error: &dyn Error) -> String {
    let mut causes: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        let line = text.lines().next().unwrap_or_default().trim().to_owned();
        if causes.last() != Some(&line) {
            causes.push(line);
        }
        next = error.source();
    }
    causes.join(": ")
}

fn capabilities() -> Result<(), Box<dyn Error + Send + Sync>> {
    let missing = privilege::lacking()?;
    if missing.is_empty() {
        Ok(())
    } else {
        Err(missing.join(", ").into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn requirement(
        need: Need,
        probe: fn() -> Result<(), Box<dyn Error + Send + Sync>>,
    ) -> Requirement {
        Requirement {
            name: "thing",
            need,
            cost: "the cost",
            probe,
        }
    }

    fn missing() -> Result<(), Box<dyn Error + Send + Sync>> {
        let cause = std::io::Error::other("the cause\nand a log");
        Err(Box::new(std::io::Error::new(
            std::io::ErrorKind::NotFound,
            Wrapped(cause),
        )))
    }

    #[derive(Debug, thiserror::Error)]
    #[error("cannot do it")]
    struct Wrapped(#[source] std::io::Error);

    #[test]
    fn only_what_is_required_keeps_the_agent_from_starting() {
        let rows = [
            (Need::Required, missing as fn() -> _, false),
            (Need::Optional, missing, true),
            (Need::Required, || Ok(()), true),
        ];
        for (need, probe, fit) in rows {
            assert_eq!(is_fit(&examine(&[requirement(need, probe)])), fit);
        }
    }

    #[test]
    fn table_names_reason_and_cost_of_what_is_missing() {
        let present = Requirement {
            name: "other",
            ..requirement(Need::Required, || Ok(()))
        };
        let findings = examine(&[requirement(Need::Optional, missing), present]);
        let expected = "\
thing  missing
       cannot do it: the cause
       the cost
other  ok
";
        assert_eq!(table(&findings), expected);
    }

    #[test]
    fn json_leaves_out_what_is_not_missing() {
        let findings = examine(&[
            requirement(Need::Required, || Ok(())),
            requirement(Need::Optional, missing),
        ]);
        let expected = serde_json::json!([
            { "name": "thing", "need": "required", "present": true },
            {
                "name": "thing", "need": "optional", "present": false,
                "missing": { "reason": "cannot do it: the cause", "cost": "the cost" },
            },
        ]);
        assert_eq!(serde_json::to_value(findings).unwrap(), expected);
    }

    /// The machine that runs the tests runs the capture tests too, so it lacks nothing required.
    #[test]
    fn this_machine_is_fit() {
        let findings = examine(&REQUIREMENTS);
        assert!(is_fit(&findings), "{}", table(&findings));
    }
}
