//! Manifests: a directory of Kubernetes objects, read as strictly as a user deserves, with the last good state kept.

use std::net::{Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::lab::{Lab, eventually};
use e2e::net;
use e2e::net::serve::{Server, echo};
use e2e::scenario::{Pair, echoes};

const SOON: Duration = Duration::from_secs(5);
const FILE: &str = "bad.yaml";

/// What `culvert status` says on node a.
fn status(lab: &Lab) -> Result<String> {
    let output = lab.node("a")?.culvert(&["status"])?;
    let text = [output.stdout, output.stderr].concat();
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// A malformed manifest and what is said of it after the file's name: line, object, field, what is wrong.
/// `DIR` stands for the directory of manifests.
type Row = (&'static str, &'static str, &'static str);

const ROWS: [Row; 20] = [
    (
        "no YAML",
        "a: [1\nb: }",
        "2: this is not YAML (illegal placement of ':' indicator): correct the line or the one before it",
    ),
    (
        "tabs for indentation",
        "apiVersion: v1\n\tkind: Pod",
        "2: a tab indents this line: YAML allows only spaces there",
    ),
    (
        "no object",
        "just some words",
        "1: is not an object: write apiVersion, kind, metadata and spec",
    ),
    (
        "a list",
        "- apiVersion: v1\n- kind: Pod",
        "1: is not an object: write apiVersion, kind, metadata and spec",
    ),
    (
        "no kind",
        "apiVersion: v1\nmetadata:\n  name: x",
        "1: kind: is missing: name the kind, such as Pod",
    ),
    (
        "no apiVersion",
        "kind: Service\nmetadata:\n  name: x",
        "1: Service x: apiVersion: is missing: name the version, such as v1",
    ),
    (
        "no name",
        "apiVersion: v1\nkind: Service\nmetadata:\n  namespace: app",
        "3: Service: metadata.name: is missing: every object has a name",
    ),
    (
        "a number for a name",
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: 7\n  namespace: app\nspec:\n  ports: []",
        "4: Service: metadata.name: invalid type: integer `7`, expected a string",
    ),
    (
        "words for a port",
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: x\n  namespace: app\nspec:\n  ports:\n  - port: http",
        "8: Service app/x: spec.ports[0].port: invalid type: string \"http\", expected i32",
    ),
    (
        "a port beyond the last",
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: x\n  namespace: app\nspec:\n  ports:\n  - port: 70000",
        "8: Service app/x: spec.ports[0].port: 70000 is not a port: use 1 to 65535",
    ),
    (
        "an unknown field",
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: x\n  namespace: app\nspec:\n  selectors:\n    app: x\n  \
         ports:\n  - port: 80",
        "7: Service app/x: spec.selectors: is not a field of this kind: correct its name or remove it",
    ),
    (
        "an unknown field of a policy",
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: x\n  namespace: app\nspec:\n  \
         rules:\n  - from:\n    - source:\n        principles: [a]",
        "10: AuthorizationPolicy app/x: spec.rules[0].from[0].source.principles: is not a field of this kind: correct its name or remove it",
    ),
    (
        "an unknown action",
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: x\n  namespace: app\nspec:\n  \
         action: PERMIT",
        "7: AuthorizationPolicy app/x: spec.action: unknown variant `PERMIT`, expected one of `ALLOW`, `DENY`, `AUDIT`, `CUSTOM`",
    ),
    (
        "a bad address",
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: x\n  namespace: app\nspec:\n  clusterIP: 10.96.0.256\n  \
         ports:\n  - port: 80",
        "7: Service app/x: spec.clusterIP: `10.96.0.256` is not an IP address: write one like 10.1.2.3 or 2001:db8::1",
    ),
    (
        "a bad address block",
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: x\n  namespace: app\nspec:\n  \
         rules:\n  - from:\n    - source:\n        ipBlocks: [10.0.0.0/33]",
        "10: AuthorizationPolicy app/x: spec.rules[0].from[0].source.ipBlocks[0]: `10.0.0.0/33` is not an address or CIDR range: write one like 10.1.0.0/16, 10.1.2.3 or 2001:db8::/64",
    ),
    (
        "a policy port that is none",
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: x\n  namespace: app\nspec:\n  \
         rules:\n  - to:\n    - operation:\n        ports: [http]",
        "10: AuthorizationPolicy app/x: spec.rules[0].to[0].operation.ports[0]: `http` is not a port: use a number from 1 to 65535",
    ),
    (
        "an unknown mode of mutual TLS",
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata:\n  name: x\n  namespace: app\nspec:\n  \
         mtls:\n    mode: MAYBE",
        "8: PeerAuthentication app/x: spec.mtls.mode: unknown variant `MAYBE`, expected one of `UNSET`, `DISABLE`, `PERMISSIVE`, `STRICT`",
    ),
    (
        "one name twice",
        "apiVersion: v1\nkind: ServiceAccount\nmetadata:\n  name: x\n  namespace: app\n---\napiVersion: v1\nkind: \
         ServiceAccount\nmetadata:\n  name: x\n  namespace: app",
        "7: ServiceAccount app/x: is also declared at DIR/bad.yaml:1:1: remove one of the two",
    ),
    (
        "a field twice",
        "apiVersion: v1\nkind: ServiceAccount\nkind: Service\nmetadata:\n  name: x\n  namespace: app",
        "3: `kind` is here a second time, first on line 2: remove one",
    ),
    (
        "a good object beside a bad one",
        "apiVersion: v1\nkind: ServiceAccount\nmetadata:\n  name: good\n  namespace: app\n---\napiVersion: v1\nkind: \
         Service\nmetadata:\n  name: x\n  namespace: app\nspec:\n  ports: 80",
        "13: Service app/x: spec.ports: invalid type: integer `80`, expected a sequence",
    ),
];

/// Waits until `culvert status` says exactly this of the file, after its name.
fn reports(lab: &Lab, what: &str, sentence: &str) -> Result<()> {
    let directory = lab.manifests().directory().display().to_string();
    let expected = format!("{directory}/{FILE}:{}", sentence.replace("DIR", &directory));
    eventually(&format!("`culvert status` reports {what}"), SOON, || {
        let text = status(lab)?;
        let said = text.lines().any(|line| line.trim_start() == expected);
        ensure!(said, "no `{expected}` in\n{text}");
        Ok(())
    })
}

/// The number of the state that is in force on node a.
fn generation(lab: &Lab) -> Result<String> {
    gauge(lab, "culvert_snapshot_generation")
}

/// A whole number of node a's, as it is written.
fn gauge(lab: &Lab, name: &str) -> Result<String> {
    Ok(lab.agent("a")?.metric(name, &[])?.to_string())
}

fn is_well_again(lab: &Lab) -> Result<()> {
    lab.manifests().delete(FILE)?;
    eventually("`culvert status` is content again", SOON, || {
        let text = status(lab)?;
        ensure!(!text.contains(FILE), "{text}");
        Ok(())
    })
}

#[test]
fn each_malformed_manifest_has_its_sentence_and_changes_nothing() -> Result<()> {
    let pair = Pair::new()?;
    let server = Server::start(&pair.server, pair.server.v4(), 7000, echo)?;
    let good = generation(&pair.lab)?;
    for (what, text, sentence) in ROWS {
        pair.lab.manifests().apply(FILE, text)?;
        reports(&pair.lab, what, sentence)?;
        ensure!(generation(&pair.lab)? == good, "{what} made a difference");
        pair.client
            .run(|| echoes(&net::connect(server.address())?, "the last good state"))
            .with_context(|| what)?;
        is_well_again(&pair.lab).with_context(|| what)?;
    }
    Ok(())
}

#[test]
fn a_file_that_is_too_large_has_its_sentence() -> Result<()> {
    let pair = Pair::new()?;
    let mut text = String::from(
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: x\n  namespace: app\ndata:\n  x: |\n",
    );
    while text.len() < 10 << 20 {
        text.push_str("    all work and no play makes a dull file\n");
    }
    pair.lab.manifests().apply(FILE, &text)?;
    reports(
        &pair.lab,
        "a file of 10 MB",
        " is larger than 8 MiB, the most that is read: split it",
    )?;
    is_well_again(&pair.lab)
}

#[test]
fn a_file_that_is_no_text_has_its_sentence() -> Result<()> {
    let pair = Pair::new()?;
    std::fs::write(
        pair.lab.manifests().directory().join(FILE),
        [0xff, 0xfe, 0x00, 0x80],
    )?;
    reports(
        &pair.lab,
        "bytes that are no UTF-8",
        "1: is not UTF-8 text: save it as UTF-8, or remove it if it is no manifest",
    )?;
    is_well_again(&pair.lab)
}

#[test]
fn a_half_written_file_is_reported_until_it_is_whole() -> Result<()> {
    let pair = Pair::new()?;
    let path = pair.lab.manifests().directory().join(FILE);
    let whole = "apiVersion: v1\nkind: Service\nmetadata:\n  name: server\n  namespace: app\nspec:\n  clusterIP: \
                 10.96.0.9\n  selector:\n    app: server\n  ports:\n  - port: 80\n    targetPort: 7000\n";
    let half = whole.find("clusterIP").context("a field")? + "clusterIP".len();
    std::fs::write(&path, &whole[..half])?;
    reports(
        &pair.lab,
        "half a file",
        "6: Service app/server: spec: invalid type: string \"clusterIP\", expected ServiceSpec",
    )?;
    std::fs::write(&path, whole)?;
    let _server = Server::start(&pair.server, Ipv6Addr::UNSPECIFIED, 7000, echo)?;
    eventually("the file is content", SOON, || {
        let text = status(&pair.lab)?;
        ensure!(!text.contains(FILE), "{text}");
        Ok(())
    })?;
    pair.client
        .run(|| echoes(&net::connect("10.96.0.9:80".parse()?)?, "whole"))
}

#[test]
fn a_bad_change_keeps_the_last_good_version_of_a_policy() -> Result<()> {
    let pair = Pair::new()?;
    let server = Server::start(&pair.server, pair.server.v4(), 7000, echo)?;
    let to: SocketAddr = server.address();
    let passes = || {
        pair.client
            .run(|| echoes(&net::connect(to)?, "let me in"))
            .is_ok()
    };
    let policy = |action: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: x\n  namespace: app\nspec:\n  \
             action: {action}\n  rules:\n  - {{}}\n"
        )
    };
    pair.lab.manifests().apply(FILE, &policy("DENY"))?;
    eventually("nobody passes", SOON, || {
        ensure!(!passes(), "still allowed");
        Ok(())
    })?;
    // A slip of the pen must not open the door.
    pair.lab.manifests().apply(FILE, &policy("DENI"))?;
    reports(
        &pair.lab,
        "the slip",
        "7: AuthorizationPolicy app/x: spec.action: unknown variant `DENI`, expected one of `ALLOW`, `DENY`, `AUDIT`, `CUSTOM`",
    )?;
    ensure!(!passes(), "a policy that became unreadable was dropped");
    pair.lab.manifests().apply(FILE, &policy("ALLOW"))?;
    eventually("everybody passes", SOON, || {
        ensure!(passes(), "still denied");
        Ok(())
    })
}

#[test]
fn the_number_of_bad_files_is_a_metric() -> Result<()> {
    let pair = Pair::new()?;
    let errors = || {
        pair.lab
            .agent("a")?
            .metric("culvert_manifest_problems", &[])
    };
    ensure!(errors()? == 0.0, "{} errors at the start", errors()?);
    pair.lab.manifests().apply(FILE, "no: object")?;
    eventually("the metric counts it", SOON, || {
        ensure!(errors()? >= 1.0, "{} errors", errors()?);
        Ok(())
    })?;
    pair.lab.manifests().delete(FILE)?;
    eventually("and forgets it", SOON, || {
        ensure!(errors()? == 0.0, "{} errors", errors()?);
        Ok(())
    })
}

#[test]
fn a_dangling_reference_has_its_sentence_and_is_counted() -> Result<()> {
    let pair = Pair::new()?;
    let warnings = || gauge(&pair.lab, "culvert_manifest_warnings");
    ensure!(warnings()? == "0", "{} warnings at the start", warnings()?);
    let policy = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: x\n  namespace: app\n\
                  spec:\n  targetRefs:\n  - kind: Service\n    group: \"\"\n    name: nowhere\n";
    pair.lab.manifests().apply(FILE, policy)?;
    reports(
        &pair.lab,
        "what is missing",
        "1: AuthorizationPolicy app/x: Service app/nowhere was not found: apply it or correct targetRefs",
    )?;
    ensure!(warnings()? == "1", "{} warnings", warnings()?);
    let log = pair.lab.agent("a")?.log()?;
    let said = log
        .lines()
        .filter(|line| line.contains(FILE) && line.contains("nowhere"));
    ensure!(said.count() == 1, "said once in the log");
    // It is a word to the user and no error: with its target it is content.
    pair.lab
        .service("nowhere", &["10.96.0.8"], &[(80, "8080")])?;
    eventually("nothing dangles", SOON, || {
        ensure!(warnings()? == "0", "{} warnings", warnings()?);
        Ok(())
    })
}
