//! Waypoints in a directory of manifests.

use std::fs;
use std::path::PathBuf;

use serde_json::json;

use super::directory::Directory;
use super::gateway::Waypoint;
use super::place::Told;
use super::{GenerateArgs, WaypointCommand, WaypointError, cluster, listing, status_table};
use crate::admin::{AgentStatus, ManifestProblem};
use crate::cli::yaml;
use crate::sources::Refusal;

/// A directory that goes with its value.
struct Manifests(PathBuf);

impl Manifests {
    fn new(name: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("culvert-waypoint-{}-{name}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn put(&self, name: &str, text: &str) {
        fs::write(self.0.join(name), text).unwrap();
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.0.join(name)).unwrap()
    }

    fn directory(&self) -> Directory {
        Directory::new(self.0.clone())
    }
}

impl Drop for Manifests {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

fn waypoint(traffic: Option<&str>) -> Waypoint {
    let args = GenerateArgs {
        name: "waypoint".to_owned(),
        namespace: None,
        traffic: traffic.map(str::to_owned),
        revision: None,
    };
    Waypoint::of(&args, "bookinfo".to_owned())
}

const GATEWAY: &str = "apiVersion: gateway.networking.k8s.io/v1\n\
    kind: Gateway\n\
    metadata:\n\
    \x20 labels:\n\
    \x20   istio.io/waypoint-for: service\n\
    \x20 name: waypoint\n\
    \x20 namespace: bookinfo\n\
    spec:\n\
    \x20 gatewayClassName: istio-waypoint\n\
    \x20 listeners:\n\
    \x20 - name: mesh\n\
    \x20   port: 15008\n\
    \x20   protocol: HBONE\n";

#[test]
fn generate_prints_a_gateway_that_reads_back() {
    let command = WaypointCommand::Generate(GenerateArgs {
        name: "waypoint".to_owned(),
        namespace: Some("bookinfo".to_owned()),
        traffic: Some("service".to_owned()),
        revision: None,
    });
    let mut out = Vec::new();
    command.run(&mut out).unwrap();
    let printed = String::from_utf8(out).unwrap();
    let objects = crate::sources::documents(&printed).unwrap();
    assert_eq!(objects, crate::sources::documents(GATEWAY).unwrap());
    assert_eq!(Waypoint::read(&objects[0]), Some(waypoint(Some("service"))));
}

#[test]
fn apply_writes_a_file_or_replaces_a_document_where_it_stands() {
    let manifests = Manifests::new("apply");
    manifests
        .directory()
        .write_waypoint(&waypoint(None))
        .unwrap();
    let own = manifests.text("waypoint-bookinfo-waypoint.yaml");
    assert_eq!(own, yaml::document(&waypoint(None).manifest()));
    fs::remove_file(manifests.0.join("waypoint-bookinfo-waypoint.yaml")).unwrap();

    let other = "# kept\nkind: Service\napiVersion: v1\nmetadata:\n  name: a\n";
    manifests.put("all.yaml", &format!("{other}---\n{GATEWAY}"));
    manifests
        .directory()
        .write_waypoint(&waypoint(Some("all")))
        .unwrap();
    let text = manifests.text("all.yaml");
    assert!(text.starts_with(other), "{text}");
    let found = manifests.directory().waypoints().unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].waypoint.traffic.as_deref(), Some("all"));
}

#[test]
fn delete_removes_the_document_and_a_file_that_is_empty_then() {
    let manifests = Manifests::new("delete");
    let other = "kind: Service\napiVersion: v1\nmetadata:\n  name: a\n";
    manifests.put("all.yaml", &format!("---\n{GATEWAY}---\n{other}"));
    manifests
        .directory()
        .remove_waypoint(&waypoint(None))
        .unwrap();
    assert_eq!(manifests.text("all.yaml"), other);
    manifests.put("own.yaml", GATEWAY);
    manifests
        .directory()
        .remove_waypoint(&waypoint(None))
        .unwrap();
    assert!(!manifests.0.join("own.yaml").exists());
    assert!(manifests.directory().waypoints().unwrap().is_empty());
}

#[test]
fn a_namespace_is_labelled_in_its_own_manifest() {
    let manifests = Manifests::new("label");
    manifests.put(
        "namespaces.yaml",
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: bookinfo\n  labels:\n    istio.io/dataplane-mode: ambient\n",
    );
    let directory = manifests.directory();
    directory.label_namespace("bookinfo", "waypoint").unwrap();
    let labels = directory.namespace_labels("bookinfo").unwrap();
    assert_eq!(labels["istio.io/use-waypoint"], "waypoint");
    assert_eq!(labels["istio.io/dataplane-mode"], "ambient");
    directory.label_namespace("new", "w").unwrap();
    assert_eq!(
        directory.namespace_labels("new").unwrap()["istio.io/use-waypoint"],
        "w"
    );
}

/// What an agent says that has read [`GATEWAY`].
fn told() -> Told {
    let condition =
        |kind: &str| json!({ "type": kind, "status": "True", "reason": kind, "message": "fine" });
    let conditions = ["Accepted", "Programmed", "ResolvedRefs"].map(condition);
    let gateway = json!({
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "Gateway",
        "metadata": { "name": "waypoint", "namespace": "bookinfo" },
        "status": { "conditions": conditions },
    });
    Told {
        status: AgentStatus::default(),
        objects: vec![serde_json::from_value(gateway).unwrap()],
    }
}

#[test]
fn a_waypoint_stands_if_the_agent_says_so() {
    let manifests = Manifests::new("status");
    manifests.put("a.yaml", GATEWAY);
    let rows = |told: &Told| -> Vec<String> {
        let found = manifests.directory().waypoints().unwrap();
        let found: Vec<_> = found.into_iter().map(|it| told.standing(it)).collect();
        let text = status_table(&found);
        let rows = text.lines().skip(1);
        rows.map(|row| row.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect()
    };
    let mut told = told();
    let stands = [
        "waypoint True Accepted Accepted fine",
        "waypoint True Programmed Programmed fine",
    ];
    assert_eq!(rows(&told), stands);
    told.status.problems = vec![ManifestProblem {
        path: manifests.0.join("a.yaml").display().to_string(),
        line: Some(1),
        object: None,
        field: None,
        message: "unknown field".to_owned(),
    }];
    let broken = [
        "waypoint False Accepted Invalid unknown field",
        "waypoint False Programmed Invalid the last good state is in force",
    ];
    assert_eq!(rows(&told), broken);
    let unread = [
        "waypoint False Accepted Pending the agent has not read it yet",
        "waypoint False Programmed Pending the agent has not read it yet",
    ];
    assert_eq!(rows(&Told::default()), unread);
}

/// A Gateway of the API, at this generation, with a condition about another.
fn gateway(generation: i64, observed: i64, status: &str) -> serde_json::Value {
    json!({
        "metadata": { "name": "w", "namespace": "a", "generation": generation,
                      "labels": { "istio.io/rev": "canary" } },
        "spec": { "gatewayClassName": "istio-waypoint" },
        "status": { "conditions": [{ "type": "Programmed", "status": status, "reason": "r", "message": "m",
                                     "observedGeneration": observed }] },
    })
}

#[test]
fn a_clusters_waypoint_stands_if_its_controller_has_seen_what_it_is_now() {
    for (object, programmed) in [
        (gateway(2, 2, "True"), "True"),
        (gateway(2, 2, "False"), "False"),
        (gateway(3, 2, "True"), "False"),
        // As the definition makes it before any controller has looked.
        (gateway(1, 0, "Unknown"), "False"),
    ] {
        let found = [cluster::standing(&mut object.clone()).unwrap()];
        let text = listing(&found, true);
        let row: Vec<_> = text.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(row, ["a", "w", "canary", "none", programmed], "{object}");
    }
    let mut other = gateway(1, 1, "True");
    other["spec"]["gatewayClassName"] = json!("istio");
    assert!(cluster::standing(&mut other).is_none());
}

#[test]
fn a_refusal_says_what_to_do_in_one_line() {
    let refusal = |status| Refusal {
        status,
        after: None,
        message: "answers so: conflicts with \"kubectl\":\n- .spec.listeners".to_owned(),
    };
    for (status, advice) in [
        (None, "is up"),
        (Some(401), "log in"),
        (Some(403), "granted"),
        (Some(404), "CRDs"),
        (Some(409), "--force-conflicts"),
    ] {
        let doing = "apply waypoint a/w".to_owned();
        let said = WaypointError::refused(doing, "https://10.0.0.1", &refusal(status)).to_string();
        assert!(said.contains(advice) && !said.contains('\n'), "{said}");
    }
}
