//! Lists as the networks write them that are in use.

use serde_json::{Value, json};

use super::{Configuration, TYPE, list_of, read};

const KINDNET: &str = r#"
{
  "cniVersion": "0.3.1",
  "name": "kindnet",
  "plugins": [
  {
    "type": "ptp",
    "ipMasq": false,
    "ipam": {
      "type": "host-local",
      "dataDir": "/run/cni-ipam-state",
      "routes": [ { "dst": "0.0.0.0/0" } ],
      "ranges": [ [ { "subnet": "10.244.0.0/24" } ] ]
    },
    "mtu": 1500
  },
  {
    "type": "portmap",
    "capabilities": { "portMappings": true }
  }
  ]
}
"#;

const CALICO: &str = r#"{
  "name": "k8s-pod-network",
  "cniVersion": "0.3.1",
  "plugins": [
    {"container_settings":{"allow_ip_forwarding":false},"datastore_type":"kubernetes","ipam":{"assign_ipv4":"true","assign_ipv6":"false","type":"calico-ipam"},"kubernetes":{"k8s_api_root":"https://10.96.0.1:443","kubeconfig":"/etc/cni/net.d/calico-kubeconfig"},"log_file_max_age":30,"log_level":"Info","mtu":0,"nodename_file_optional":false,"policy":{"type":"k8s"},"type":"calico"},
    {"capabilities":{"bandwidth":true},"type":"bandwidth"},
    {"capabilities":{"portMappings":true},"snat":true,"type":"portmap"}
  ]
}"#;

const CILIUM: &str = r#"
{
  "cniVersion": "0.3.1",
  "name": "cilium",
  "plugins": [
    {
       "type": "cilium-cni",
       "enable-debug": false,
       "log-file": "/var/run/cilium/cilium-cni.log"
    }
  ]
}
"#;

const FLANNEL: &str = "{\n  \"name\": \"cbr0\",\n  \"cniVersion\": \"0.3.1\",\n  \"plugins\": [\n    {\n      \"type\": \"flannel\",\n      \"delegate\": {\n        \"hairpinMode\": true,\n        \"isDefaultGateway\": true\n      }\n    },\n    {\n      \"type\": \"portmap\",\n      \"capabilities\": {\n        \"portMappings\": true\n      }\n    }\n  ]\n}\n";

/// Fields that no version of CNI has, an array named like ours further in, and no white space at all.
const STRANGE: &str = r#"{"x":{"plugins":[1]},"name":"n","disableCheck":true,"plugins":[{"type":"a","plugins":[],"e":"],}\"\\"}],"later":[{"type":"b"}]}"#;

fn entry() -> Value {
    json!({ "type": TYPE, "socket": "/run/culvert/cni.sock" })
}

#[track_caller]
fn list(text: &str) -> super::Conflist<'_> {
    match read(text) {
        Some(Configuration::List(list)) => list,
        other => panic!("{other:?} of {text}"),
    }
}

#[test]
fn the_entry_goes_to_the_end_and_out_again_without_a_trace() {
    for text in [KINDNET, CALICO, CILIUM, FLANNEL, STRANGE] {
        assert!(!list(text).has_entry() && list(text).without().is_none());
        let with = list(text).with(&entry()).unwrap();
        let (before, after): (Value, Value) = (
            serde_json::from_str(text).unwrap(),
            serde_json::from_str(&with).unwrap(),
        );
        let mut expected = before;
        let plugins = expected["plugins"].as_array_mut().unwrap();
        plugins.push(entry());
        assert_eq!(after, expected);
        assert!(list(&with).has_entry());
        assert_eq!(list(&with).with(&entry()), None, "once is enough");
        assert_eq!(list(&with).without().as_deref(), Some(text));
    }
}

#[test]
fn an_entry_of_another_version_is_replaced() {
    let old = json!({ "type": TYPE, "socket": "/elsewhere" });
    let with_old = list(KINDNET).with(&old).unwrap();
    let with = list(&with_old).with(&entry()).unwrap();
    assert_eq!(list(&with).without().as_deref(), Some(KINDNET));
    assert_eq!(list(&with).with(&entry()), None);
}

#[test]
fn an_entry_that_others_were_put_behind_goes_to_the_end() {
    let text = format!(
        r#"{{"name":"n","plugins":[{}, {{"type":"a"}},{},  {{"type":"b"}}]}}"#,
        entry(),
        entry()
    );
    let with = list(&text).with(&entry()).unwrap();
    let expected = format!(
        r#"{{"name":"n","plugins":[{{"type":"a"}},  {{"type":"b"}},{}]}}"#,
        entry()
    );
    assert_eq!(with, expected);
}

#[test]
fn a_single_plugin_becomes_a_list_with_all_that_it_has() {
    let text = r#"{"cniVersion":"0.3.1","name":"n","type":"bridge","ipam":{"type":"host-local"}}"#;
    let Some(Configuration::Single(single)) = read(text) else {
        panic!("no single plugin")
    };
    let made = list_of(&single, &entry());
    let value: Value = serde_json::from_str(&made).unwrap();
    assert_eq!(
        (&value["name"], &value["cniVersion"]),
        (&json!("n"), &json!("0.3.1"))
    );
    assert_eq!(value["plugins"][0]["ipam"]["type"], "host-local");
    assert!(list(&made).has_entry());
}

#[test]
fn what_is_no_network_configuration_is_left_alone() {
    for text in [
        "",
        "{}",
        "[]",
        "not json",
        r#"{"plugins":[{"type":"a"}]}"#,
        r#"{"name":"n","plugins":[]}"#,
        r#"{"name":"n","plugins":{}}"#,
        r#"{"name":"n"}"#,
        r#"{"name":"n","plugins":[{"type":"a"}]"#,
    ] {
        assert!(read(text).is_none(), "{text}");
    }
    let only_ours = format!(r#"{{"name":"n","plugins":[{}]}}"#, entry());
    assert_eq!(list(&only_ours).without(), None);
}
