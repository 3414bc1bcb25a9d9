//! What runtimes ask, as containerd and CRI-O do.

use std::ffi::OsString;

use serde_json::{Value, json};

use super::{
    BAD_CONFIGURATION, BAD_ENVIRONMENT, BAD_VERSION, Failure, Invocation, UNREADABLE,
    configuration, read,
};
use crate::cni::protocol::Command;

const ARGS: &str = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=0123;K8S_POD_UID=u-1";

fn conf(more: &Value) -> Value {
    let mut whole = json!({
        "cniVersion": "1.0.0",
        "name": "kindnet",
        "type": "culvert-cni",
        "socket": "/run/culvert/cni.sock",
        "runtimeConfig": { "portMappings": [] },
        "prevResult": {
            "cniVersion": "1.0.0",
            "interfaces": [{ "name": "eth0", "sandbox": "/var/run/netns/cni-1" }],
            "ips": [{ "address": "10.244.1.5/24", "interface": 0 }, { "address": "fd00::5/64" }],
        },
    });
    for (field, value) in more.as_object().unwrap() {
        whole[field] = value.clone();
    }
    whole
}

fn invoke(environment: &[(&str, &str)], conf: &Value) -> Result<Invocation, Failure> {
    let get = |name: &str| -> Option<OsString> {
        let found = environment.iter().find(|(own, _)| *own == name);
        found.map(|(_, value)| (*value).into())
    };
    read(&get, &configuration(conf.to_string().as_bytes())?)
}

fn as_kubelet(command: &'static str) -> [(&'static str, &'static str); 5] {
    [
        ("CNI_COMMAND", command),
        ("CNI_CONTAINERID", "0123"),
        ("CNI_NETNS", "/var/run/netns/cni-1"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_ARGS", ARGS),
    ]
}

#[test]
fn add_asks_for_the_pod_and_hands_the_result_on() {
    let conf = conf(&json!({}));
    let Ok(Invocation::Ask {
        command: Command::Add(sandbox),
        result,
    }) = invoke(&as_kubelet("ADD"), &conf)
    else {
        panic!("no question")
    };
    assert_eq!(result.as_ref(), conf.get("prevResult"));
    assert_eq!(
        serde_json::to_value(sandbox).unwrap(),
        json!({
            "container": "0123",
            "netns": "/var/run/netns/cni-1",
            "pod": { "namespace": "shop", "name": "web-0", "uid": "u-1" },
            "addresses": ["10.244.1.5", "fd00::5"],
        })
    );
}

#[test]
fn who_is_no_pod_passes() {
    for args in [
        "",
        "IgnoreUnknown=1",
        "K8S_POD_NAME=x",
        "K8S_POD_NAME=;K8S_POD_NAMESPACE=a",
    ] {
        let mut environment = as_kubelet("ADD");
        environment[4].1 = args;
        let passed = invoke(&environment, &conf(&json!({})));
        assert!(
            matches!(passed, Ok(Invocation::Pass { result: Some(_) })),
            "{args}: {passed:?}"
        );
    }
}

#[test]
fn every_other_command() {
    let conf = conf(&json!({
        "cniVersion": "1.1.0",
        "cni.dev/valid-attachments": [
            { "containerID": "a", "ifname": "eth0" },
            { "containerID": "b", "ifname": "eth0" },
        ],
    }));
    let asks = |command| match invoke(&as_kubelet(command), &conf) {
        Ok(Invocation::Ask {
            command,
            result: None,
        }) => serde_json::to_value(command).unwrap(),
        other => panic!("{other:?}"),
    };
    assert_eq!(
        asks("DEL"),
        json!({ "command": "del", "container": "0123" })
    );
    assert_eq!(
        asks("GC"),
        json!({ "command": "gc", "containers": ["a", "b"] })
    );
    assert_eq!(asks("STATUS"), json!({ "command": "status" }));
    assert_eq!(asks("CHECK")["command"], "check");
    assert_eq!(
        invoke(&as_kubelet("VERSION"), &conf),
        Ok(Invocation::Version)
    );
}

#[track_caller]
fn fails(environment: &[(&str, &str)], conf: &Value, code: u32, part: &str) {
    let failure = invoke(environment, conf).unwrap_err();
    assert_eq!(failure.code, code, "{failure:?}");
    assert!(failure.sentence.contains(part), "{failure:?}");
}

#[test]
fn what_is_wrong_is_said_with_the_code_of_the_specification() {
    let add = as_kubelet("ADD");
    let plain = conf(&json!({}));
    fails(
        &add,
        &conf(&json!({ "prevResult": null })),
        BAD_CONFIGURATION,
        "behind the plugin",
    );
    fails(
        &add,
        &conf(&json!({ "socket": "" })),
        BAD_CONFIGURATION,
        "`socket` is missing",
    );
    fails(
        &add,
        &conf(&json!({ "cniVersion": "0.2.0" })),
        BAD_VERSION,
        "not 0.2.0",
    );
    fails(
        &add,
        &conf(&json!({ "cniVersion": "2.0.0" })),
        BAD_VERSION,
        "not 2.0.0",
    );
    fails(
        &add,
        &conf(&json!({ "startWithoutAgent": 7 })),
        UNREADABLE,
        "cannot be read",
    );
    fails(
        &as_kubelet("GC"),
        &plain,
        BAD_CONFIGURATION,
        "valid-attachments",
    );
    fails(&as_kubelet("RUN"), &plain, BAD_ENVIRONMENT, "`RUN`");
    fails(&add[1..], &plain, BAD_ENVIRONMENT, "CNI_COMMAND");
    let mut no_uid = add;
    no_uid[4].1 = "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0";
    fails(&no_uid, &plain, BAD_ENVIRONMENT, "K8S_POD_UID");
    let mut no_netns = add;
    no_netns[2].1 = "";
    fails(&no_netns, &plain, BAD_ENVIRONMENT, "CNI_NETNS");
}
