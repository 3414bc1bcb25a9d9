//! What istio-cni writes into a pod (istio `cni/pkg/iptables`), rule by rule and in its order.

use std::io::Write as _;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::lab::{Netns, Pod};

/// Which of the kernel's two tables are written, as istio-cni finds out which a node uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tables {
    /// Those of `iptables-nft`.
    Nft,
    /// Those of `iptables-legacy`.
    Legacy,
}

/// A family: its addresses as the rules have them.
struct Family {
    program: &'static str,
    loopback: &'static str,
    /// Where the node's probes come from.
    node: &'static str,
    everything: &'static str,
    ip: &'static str,
}

const V4: Family = Family {
    program: "iptables",
    loopback: "127.0.0.1/32",
    node: "169.254.7.127",
    everything: "0.0.0.0/0",
    ip: "-4",
};
const V6: Family = Family {
    program: "ip6tables",
    loopback: "::1/128",
    node: "fd16:9254:7127:1337:ffff:ffff:ffff:ffff",
    everything: "::/0",
    ip: "-6",
};

/// Puts the rules into a pod.
///
/// # Errors
/// If they cannot be written.
pub fn put_into(pod: &Pod, tables: Tables) -> Result<()> {
    for family in [V4, V6] {
        restore(pod.netns(), &family, tables, &rules(&family))?;
        let Family { ip, everything, .. } = family;
        for words in [
            "rule add fwmark 0x111/0xfff pref 32764 lookup 100".to_owned(),
            format!("route add local {everything} dev lo table 100"),
        ] {
            let words = words.split(' ').collect::<Vec<_>>();
            pod.netns().ip(&[[ip].as_slice(), &words].concat())?;
        }
    }
    Ok(())
}

/// Takes them out again, as before a pod is taken out of the mesh.
///
/// # Errors
/// If they cannot be removed.
pub fn take_out_of(pod: &Pod, tables: Tables) -> Result<()> {
    for family in [V4, V6] {
        let empty = ["mangle", "nat", "raw"].map(|table| format!("*{table}\nCOMMIT\n"));
        // Without --noflush, what is not there is removed.
        let program = program(&family, tables);
        feed(pod.netns(), &program, &[], &empty.concat())?;
        let Family { ip, everything, .. } = family;
        for words in [
            "rule del fwmark 0x111/0xfff pref 32764 lookup 100".to_owned(),
            format!("route del local {everything} dev lo table 100"),
        ] {
            let words = words.split(' ').collect::<Vec<_>>();
            pod.netns().ip(&[[ip].as_slice(), &words].concat())?;
        }
    }
    Ok(())
}

/// Has what a node's own processes open to a pod come from the address that istio-cni gives it. istio-cni names the pods by
/// an ipset, this by their addresses.
///
/// # Errors
/// If the rules cannot be written.
pub fn rewrite_probes(node: &Netns, pod: &Pod) -> Result<()> {
    for (family, address) in [(V4, pod.v4()), (V6, pod.v6())] {
        let Family { node: source, .. } = family;
        let text = format!(
            "*nat\n-N ISTIO_POSTRT\n-I POSTROUTING 1 -j ISTIO_POSTRT\n\
             -A ISTIO_POSTRT -m owner --socket-exists -p tcp -d {address} -j SNAT --to-source {source}\nCOMMIT\n"
        );
        restore(node, &family, Tables::Nft, &text)?;
    }
    Ok(())
}

fn rules(family: &Family) -> String {
    let Family { loopback, node, .. } = family;
    format!(
        "*mangle
-N ISTIO_PRERT
-N ISTIO_OUTPUT
-A PREROUTING -j ISTIO_PRERT
-A OUTPUT -j ISTIO_OUTPUT
-A ISTIO_PRERT -m mark --mark 0x539/0xfff -j CONNMARK --set-xmark 0x111/0xfff
-A ISTIO_OUTPUT -m connmark --mark 0x111/0xfff -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff
COMMIT
*nat
-N ISTIO_PRERT
-N ISTIO_OUTPUT
-A OUTPUT -j ISTIO_OUTPUT
-A PREROUTING -j ISTIO_PRERT
-A ISTIO_PRERT -s {node} -p tcp -m tcp -j ACCEPT
-A ISTIO_OUTPUT -d {node} -p tcp -m tcp -j ACCEPT
-A ISTIO_PRERT ! -d {loopback} -p tcp ! --dport 15008 -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15006
-A ISTIO_OUTPUT ! -o lo -p udp -m mark ! --mark 0x539/0xfff -m udp --dport 53 -j REDIRECT --to-ports 15053
-A ISTIO_OUTPUT ! -d {loopback} -p tcp --dport 53 -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15053
-A ISTIO_OUTPUT -p tcp -m mark --mark 0x111/0xfff -j ACCEPT
-A ISTIO_OUTPUT ! -d {loopback} -o lo -j ACCEPT
-A ISTIO_OUTPUT ! -d {loopback} -p tcp -m mark ! --mark 0x539/0xfff -j REDIRECT --to-ports 15001
COMMIT
*raw
-N ISTIO_OUTPUT
-N ISTIO_PRERT
-A PREROUTING -j ISTIO_PRERT
-A OUTPUT -j ISTIO_OUTPUT
-A ISTIO_OUTPUT -p udp -m mark --mark 0x539/0xfff -m udp --dport 53 -j CT --zone 1
-A ISTIO_PRERT -p udp -m mark ! --mark 0x539/0xfff -m udp --sport 53 -j CT --zone 1
COMMIT
"
    )
}

fn program(family: &Family, tables: Tables) -> String {
    let tables = match tables {
        Tables::Nft => "nft",
        Tables::Legacy => "legacy",
    };
    format!("{}-{tables}-restore", family.program)
}

fn restore(netns: &Netns, family: &Family, tables: Tables, text: &str) -> Result<()> {
    feed(netns, &program(family, tables), &["--noflush"], text)
}

fn feed(netns: &Netns, program: &str, options: &[&str], text: &str) -> Result<()> {
    let mut command = Command::new(program);
    command
        .args(options)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = netns
        .enter(&mut command)?
        .spawn()
        .with_context(|| format!("`{program}` is missing: run `cargo xtask setup`"))?;
    let mut input = child.stdin.take().context("it has no input")?;
    input.write_all(text.as_bytes())?;
    drop(input);
    let output = child.wait_with_output()?;
    let why = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program}: {why}");
    Ok(())
}
