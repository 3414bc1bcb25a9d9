//! Applications that want TLS of their own, or a PROXY header, from whoever does the waypoint's work: DestinationRule's
//! `tls` and `proxyProtocol`, BackendTLSPolicy.
//!
//! Within the mesh the server's node begins it, which has judged the requests before; towards hosts outside of the mesh
//! the client's node does.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use e2e::echo::{Echo, EchoMesh, Seen, SeenTls, destination_rule};
use e2e::lab::{PodSpec, eventually};
use e2e::net::http::{Ask, Conversation};
use e2e::net::service::Front;
use e2e::tls::Authority;
use rustls::ServerConfig;

/// Ports of a service whose applications speak TLS on 8443, whatever is inside, and nothing of the kind on 8080.
const PORTS: &str = "  - {name: http, port: 80, targetPort: 8443, appProtocol: http}
  - {name: http-clear, port: 81, targetPort: 8080, appProtocol: http}
  - {name: grpc, port: 70, targetPort: 8443, appProtocol: kubernetes.io/h2c}
  - {name: tcp, port: 90, targetPort: 8443, appProtocol: tcp}
";

/// What the service is called by whoever asks it for TLS.
const HOST: &str = "secure.shop.svc.cluster.local";

/// A shop whose service `secure` has its applications on both nodes.
struct Shop {
    // Dropped before the lab, which removes their namespaces.
    echoes: Vec<Echo>,
    mesh: EchoMesh,
}

impl Shop {
    /// Both applications are behind this.
    fn behind(front: &Front) -> Result<Self> {
        let mut shop = Self::without_applications()?;
        for pod in ["echo-v1", "echo-v2"] {
            shop.serve(pod, front.clone())?;
        }
        Ok(shop)
    }

    /// Both applications speak TLS in these names.
    fn in_tls(config: &Arc<ServerConfig>) -> Result<Self> {
        Self::behind(&in_tls(config))
    }

    fn without_applications() -> Result<Self> {
        let mut mesh = EchoMesh::shop()?;
        mesh.service_with("shop", "secure", "{}", "{app: echo}", PORTS)?;
        let echoes = Vec::new();
        Ok(Self { echoes, mesh })
    }

    fn serve(&mut self, pod: &str, front: Front) -> Result<()> {
        let echo = Echo::start_behind(front, self.mesh.pod(pod)?, &[8443])?;
        self.echoes.push(echo);
        Ok(())
    }

    fn at(&self, port: u16) -> Result<SocketAddr> {
        self.mesh.at("secure", port)
    }

    /// Waits until every request is answered by an application that saw what is wanted, on both nodes.
    fn soon_seen(&self, port: u16, what: &str, wanted: impl Fn(&Seen) -> Result<()>) -> Result<()> {
        let to = self.at(port)?;
        self.mesh.soon(what, || {
            let mut pods = std::collections::BTreeSet::new();
            for _ in 0..12 {
                let seen = self.mesh.seen("client", to, &Ask::get("/"))?;
                wanted(&seen)?;
                pods.insert(seen.pod);
            }
            ensure!(pods.len() == 2, "only {pods:?} answer");
            Ok(())
        })
    }

    /// Waits until requests are refused, for a reason that is told.
    fn soon_refused(&self, port: u16, why: &str) -> Result<()> {
        let to = self.at(port)?;
        self.mesh.soon(&format!("503: {why}"), || {
            let answer = self.mesh.ask("client", to, &Ask::get("/"))?;
            let text = answer.text();
            ensure!(answer.status == 503, "{}: {text}", answer.status);
            ensure!(text.contains(why), "{text}");
            Ok(())
        })
    }
}

fn in_tls(config: &Arc<ServerConfig>) -> Front {
    Front {
        tls: Some(Arc::clone(config)),
        ..Front::default()
    }
}

/// A DestinationRule about `secure`.
fn rule(policy: &str) -> String {
    destination_rule("secure", policy)
}

fn tls_of(seen: &Seen) -> Result<&SeenTls> {
    seen.tls
        .as_ref()
        .with_context(|| format!("no TLS: {seen:?}"))
}

#[test]
fn destination_rule_originates_tls_inside_the_tunnel() -> Result<()> {
    let authority = Authority::new("shop")?;
    let shop = Shop::in_tls(&authority.server(&[HOST, "other.example"], None)?)?;
    let secrets = authority.secret("ca", None)?;
    shop.mesh.apply("secret.yaml", &secrets)?;
    let simple = rule("tls: {mode: SIMPLE, credentialName: ca}");
    shop.mesh.apply("rule.yaml", &simple)?;
    shop.soon_seen(80, "TLS in the service's name", |seen| {
        let tls = tls_of(seen)?;
        ensure!(tls.server_name.as_deref() == Some(HOST), "{tls:?}");
        ensure!(tls.alpn.as_deref() == Some("http/1.1"), "{tls:?}");
        ensure!(!tls.has_certificate, "{tls:?}");
        // Layer 7 has seen it, and the application its client.
        ensure!(seen.header("x-request-id").is_some(), "{seen:?}");
        ensure!(
            seen.peer.ip().to_canonical() == shop.mesh.pod("client")?.v4(),
            "{seen:?}"
        );
        Ok(())
    })?;
    let grpc = Ask::new("POST", "/").with("content-type", "application/grpc");
    let (client, to) = (shop.mesh.pod("client")?, shop.at(70)?);
    let answer = client.run(|| e2e::net::h2c::Connection::open(to)?.ask(&grpc))?;
    let seen = Seen::in_answer(&answer)?;
    ensure!(tls_of(&seen)?.alpn.as_deref() == Some("h2"), "{seen:?}");
    // Another name is asked for; one of several may be proven.
    shop.mesh.apply(
        "rule.yaml",
        &rule("tls: {mode: SIMPLE, credentialName: ca, sni: a.example, subjectAltNames: [b.example, other.example]}"),
    )?;
    shop.soon_seen(80, "TLS in another name", |seen| {
        let tls = tls_of(seen)?;
        ensure!(tls.server_name.as_deref() == Some("a.example"), "{tls:?}");
        Ok(())
    })
}

#[test]
fn a_server_that_proves_nothing_is_sent_nothing() -> Result<()> {
    let (authority, other) = (Authority::new("shop")?, Authority::new("other")?);
    let shop = Shop::in_tls(&authority.server(&[HOST], None)?)?;
    let secrets = [authority.secret("ca", None)?, other.secret("other", None)?];
    shop.mesh.apply("secret.yaml", &secrets.concat())?;
    let good = rule("tls: {mode: SIMPLE, credentialName: ca}");
    shop.mesh.apply("rule.yaml", &good)?;
    shop.soon_seen(80, "TLS", |seen| tls_of(seen).map(drop))?;
    // Connections that were made under another setting are not used any more.
    let (client, to) = (shop.mesh.pod("client")?, shop.at(80)?);
    let mut kept = client.run(|| Conversation::open(to))?;
    ensure!(
        kept.ask(&Ask::get("/"))?.status == 200,
        "the conversation begins"
    );
    let wrong = rule("tls: {mode: SIMPLE, credentialName: other}");
    shop.mesh.apply("rule.yaml", &wrong)?;
    shop.soon_refused(80, "UnknownIssuer")?;
    let answer = kept.ask(&Ask::get("/"))?;
    ensure!(answer.status == 503, "{answer:?}");
    // The log says it, too, where Envoy's default has its place for it.
    let log = shop.mesh.lab.agent("a")?.log()?;
    ensure!(log.contains("UnknownIssuer"), "the log is silent");
    let named = rule("tls: {mode: SIMPLE, credentialName: ca, subjectAltNames: [else.example]}");
    shop.mesh.apply("rule.yaml", &named)?;
    shop.soon_refused(80, "is for none of else.example")?;
    // Nobody has to vouch for whom the rule believes anyway.
    let anyone = rule("tls: {mode: SIMPLE, insecureSkipVerify: true, sni: any.example}");
    shop.mesh.apply("rule.yaml", &anyone)?;
    shop.soon_seen(80, "TLS with anyone", |seen| tls_of(seen).map(drop))?;
    // Without a credential the system's authorities count, which know nobody here.
    shop.mesh.apply("rule.yaml", &rule("tls: {mode: SIMPLE}"))?;
    shop.soon_refused(80, "UnknownIssuer")
}

#[test]
fn a_credential_that_is_not_there_refuses_and_is_told() -> Result<()> {
    let authority = Authority::new("shop")?;
    let shop = Shop::in_tls(&authority.server(&[HOST], None)?)?;
    let simple = rule("tls: {mode: SIMPLE, credentialName: late}");
    shop.mesh.apply("rule.yaml", &simple)?;
    let missing = "names Secret shop/late, which is not there";
    shop.soon_refused(80, missing)?;
    eventually("the status says so", Duration::from_secs(5), || {
        let output = shop.mesh.lab.node("a")?.culvert(&["status"])?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = format!("DestinationRule shop/secure: {missing}");
        ensure!(text.contains(&line), "{text}");
        Ok(())
    })?;
    let to = shop.at(80)?.to_string();
    let question = [
        "explain",
        "--from",
        "clients/client",
        "--to",
        &to,
        "GET",
        "/",
    ];
    let output = shop.mesh.lab.node("a")?.culvert(&question)?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(text.contains(missing) && text.contains("503"), "{text}");
    // It comes, and everything is well.
    shop.mesh
        .apply("secret.yaml", &authority.secret("late", None)?)?;
    shop.soon_seen(80, "TLS", |seen| tls_of(seen).map(drop))
}

#[test]
fn destination_rule_shows_a_certificate_where_both_sides_have_to() -> Result<()> {
    let (authority, clients) = (Authority::new("shop")?, Authority::new("clients")?);
    let shop = Shop::in_tls(&authority.server(&[HOST], Some(&clients))?)?;
    let secrets = [
        authority.secret("mutual", Some(&clients))?,
        authority.secret("wrong", Some(&authority))?,
    ];
    shop.mesh.apply("secret.yaml", &secrets.concat())?;
    let mutual = |name: &str| rule(&format!("tls: {{mode: MUTUAL, credentialName: {name}}}"));
    shop.mesh.apply("rule.yaml", &mutual("mutual"))?;
    shop.soon_seen(80, "mutual TLS", |seen| {
        ensure!(tls_of(seen)?.has_certificate, "{seen:?}");
        Ok(())
    })?;
    shop.mesh.apply("rule.yaml", &mutual("wrong"))?;
    shop.mesh
        .soon_answers("client", shop.at(80)?, &Ask::get("/"), 503)?;
    // A key that is for another certificate is found before anybody is called.
    let broken = secrets[0].replace(&key_of(&secrets[0])?, &key_of(&secrets[1])?);
    shop.mesh.apply("secret.yaml", &broken)?;
    shop.mesh.apply("rule.yaml", &mutual("mutual"))?;
    shop.soon_refused(80, "certificate and key cannot be used")
}

/// The lines of a Secret's key.
fn key_of(secret: &str) -> Result<String> {
    let (_, key) = secret.split_once("  tls.key: |\n").context("no key")?;
    Ok(key.to_owned())
}

#[test]
fn destination_rule_port_level_tls() -> Result<()> {
    let authority = Authority::new("shop")?;
    let shop = Shop::in_tls(&authority.server(&[HOST], None)?)?;
    shop.mesh
        .apply("secret.yaml", &authority.secret("ca", None)?)?;
    let port = |number: u16, tls: &str| format!("{{port: {{number: {number}}}, tls: {tls}}}");
    let simple = "{mode: SIMPLE, credentialName: ca}";
    // Only one port, then all but one.
    for policy in [
        format!("portLevelSettings: [{}]", port(80, simple)),
        format!(
            "tls: {simple}\n    portLevelSettings: [{}]",
            port(81, "{mode: DISABLE}")
        ),
    ] {
        shop.mesh.apply("rule.yaml", &rule(&policy))?;
        shop.soon_seen(80, "TLS", |seen| tls_of(seen).map(drop))?;
        shop.soon_seen(81, "no TLS", |seen| {
            ensure!(seen.tls.is_none(), "{seen:?}");
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn destination_rule_subset_policy_has_tls_of_its_own() -> Result<()> {
    let authority = Authority::new("shop")?;
    let mut shop = Shop::without_applications()?;
    shop.serve("echo-v1", in_tls(&authority.server(&["v1.example"], None)?))?;
    shop.serve("echo-v2", Front::default())?;
    shop.mesh
        .apply("secret.yaml", &authority.secret("ca", None)?)?;
    shop.mesh.apply(
        "rule.yaml",
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: secure, namespace: shop}\nspec:\n  \
         host: secure\n  trafficPolicy: {tls: {mode: DISABLE}}\n  subsets:\n  - name: v1\n    labels: {version: v1}\n    \
         trafficPolicy: {tls: {mode: SIMPLE, credentialName: ca, sni: v1.example}}\n  - {name: v2, labels: {version: \
         v2}}\n---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: secure, namespace: \
         shop}\nspec:\n  hosts: [secure]\n  http:\n  - match: [{uri: {prefix: /v1}}]\n    route: [{destination: {host: \
         secure, subset: v1}}]\n  - route: [{destination: {host: secure, subset: v2}}]\n",
    )?;
    let to = shop.at(80)?;
    shop.mesh.soon("one subset has TLS, the other has not", || {
        let v1 = shop.mesh.seen("client", to, &Ask::get("/v1"))?;
        ensure!(v1.pod == "echo-v1" && v1.tls.is_some(), "{v1:?}");
        let v2 = shop.mesh.seen("client", to, &Ask::get("/v2"))?;
        ensure!(v2.pod == "echo-v2" && v2.tls.is_none(), "{v2:?}");
        Ok(())
    })
}

#[test]
fn destination_rule_istio_mutual_is_the_tunnels() -> Result<()> {
    let shop = Shop::behind(&Front::default())?;
    shop.mesh.apply(
        "rule.yaml",
        &rule("tls: {mode: ISTIO_MUTUAL}\n    loadBalancer: {simple: ROUND_ROBIN}"),
    )?;
    shop.soon_seen(80, "the application sees HTTP", |seen| {
        ensure!(seen.tls.is_none(), "{seen:?}");
        Ok(())
    })
}

#[test]
fn requests_are_judged_where_they_arrive_before_they_are_sealed() -> Result<()> {
    let authority = Authority::new("shop")?;
    let shop = Shop::in_tls(&authority.server(&[HOST], None)?)?;
    shop.mesh
        .apply("secret.yaml", &authority.secret("ca", None)?)?;
    let simple = rule("tls: {mode: SIMPLE, credentialName: ca}");
    shop.mesh.apply("rule.yaml", &simple)?;
    shop.mesh.apply(
        "policy.yaml",
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: secure, namespace: shop}\nspec:\n  \
         targetRefs: [{group: \"\", kind: Service, name: secure}]\n  rules:\n  - from: [{source: {principals: \
         [cluster.local/ns/clients/sa/client]}}]\n    to: [{operation: {methods: [GET], paths: [/open*]}}]\n",
    )?;
    let to = shop.at(80)?;
    shop.mesh
        .soon_answers("client", to, &Ask::get("/shut"), 403)?;
    shop.mesh
        .soon_answers("stranger", to, &Ask::get("/open"), 403)?;
    shop.mesh
        .soon("the allowed request is answered in TLS", || {
            let seen = shop.mesh.seen("client", to, &Ask::get("/open"))?;
            tls_of(&seen).map(drop)
        })
}

#[test]
fn connections_that_are_bytes_to_us_are_sealed_as_well() -> Result<()> {
    let authority = Authority::new("shop")?;
    let shop = Shop::in_tls(&authority.server(&[HOST], None)?)?;
    shop.mesh
        .apply("secret.yaml", &authority.secret("ca", None)?)?;
    let simple = rule("tls: {mode: SIMPLE, credentialName: ca}");
    shop.mesh.apply("rule.yaml", &simple)?;
    shop.soon_seen(90, "TLS without layer 7", |seen| {
        ensure!(tls_of(seen)?.alpn.is_none(), "{seen:?}");
        ensure!(seen.header("x-request-id").is_none(), "{seen:?}");
        Ok(())
    })
}

#[test]
fn destination_rule_proxy_protocol() -> Result<()> {
    let authority = Authority::new("shop")?;
    let clear = Front {
        proxy: true,
        ..Front::default()
    };
    let sealed = Front {
        tls: Some(authority.server(&[HOST], None)?),
        ..clear.clone()
    };
    let simple = "tls: {mode: SIMPLE, credentialName: ca}";
    for (front, tls) in [(clear, ""), (sealed, simple)] {
        let shop = Shop::behind(&front)?;
        shop.mesh
            .apply("secret.yaml", &authority.secret("ca", None)?)?;
        let client = shop.mesh.pod("client")?.v4();
        for version in ["V1", "V2"] {
            let policy = format!("proxyProtocol: {{version: {version}}}\n    {tls}");
            shop.mesh.apply("rule.yaml", &rule(&policy))?;
            for port in [80, 90] {
                shop.soon_seen(port, &format!("{version} {tls}"), |seen| {
                    let line = seen.proxied.clone().unwrap_or_default();
                    let server = shop.mesh.pod(&seen.pod)?.v4();
                    let begins = match version {
                        "V1" => format!("PROXY TCP4 {client} {server} "),
                        _ => format!("v2 {client}:"),
                    };
                    ensure!(line.starts_with(&begins), "{line}");
                    ensure!(line.ends_with("8443"), "{line}");
                    ensure!(seen.tls.is_some() != tls.is_empty(), "{seen:?}");
                    Ok(())
                })?;
            }
        }
    }
    Ok(())
}

/// A host outside of the mesh that speaks TLS, and a ServiceEntry for it.
struct Abroad {
    // Dropped before the lab, as in `Shop`.
    echo: Echo,
    mesh: EchoMesh,
    to: SocketAddr,
}

impl Abroad {
    fn new(config: &Arc<ServerConfig>) -> Result<Self> {
        let mut mesh = EchoMesh::shop()?;
        let spec = PodSpec::new("b", "abroad").in_namespace("clients");
        let host = mesh.lab.place(&spec.uncaptured())?;
        let echo = Echo::start_behind(in_tls(config), &host, &[8443])?;
        let to = "10.96.1.1:80".parse()?;
        mesh.apply(
            "entry.yaml",
            &format!(
                "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {{name: abroad, namespace: shop}}\nspec:\n  \
                 hosts: [api.example.com]\n  addresses: [10.96.1.1]\n  ports: [{{number: 80, name: http, protocol: HTTP, \
                 targetPort: 8443}}]\n  resolution: STATIC\n  location: MESH_EXTERNAL\n  endpoints: [{{address: {}}}]\n",
                host.v4()
            ),
        )?;
        Ok(Self { echo, mesh, to })
    }

    fn soon_in_tls(&self, name: &str) -> Result<()> {
        self.mesh.soon("the host abroad is asked in TLS", || {
            let seen = self.mesh.seen("client", self.to, &Ask::get("/"))?;
            let tls = tls_of(&seen)?;
            ensure!(tls.server_name.as_deref() == Some(name), "{tls:?}");
            Ok(())
        })
    }

    fn soon_refused(&self, why: &str) -> Result<()> {
        self.mesh.soon("the host abroad is not believed", || {
            let answer = self.mesh.ask("client", self.to, &Ask::get("/"))?;
            let text = answer.text();
            ensure!(answer.status == 503 && text.contains(why), "{text}");
            Ok(())
        })
    }
}

#[test]
fn service_entry_with_tls_by_destination_rule() -> Result<()> {
    let (authority, other) = (Authority::new("abroad")?, Authority::new("other")?);
    let abroad = Abroad::new(&authority.server(&["api.example.com"], None)?)?;
    let secrets = [authority.secret("ca", None)?, other.secret("other", None)?];
    abroad.mesh.apply("secret.yaml", &secrets.concat())?;
    let rule = |tls: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: abroad, namespace: shop}}\nspec: \
             {{host: api.example.com, trafficPolicy: {{tls: {tls}}}}}\n"
        )
    };
    abroad
        .mesh
        .apply("rule.yaml", &rule("{mode: SIMPLE, credentialName: ca}"))?;
    abroad.soon_in_tls("api.example.com")?;
    ensure!(
        abroad.echo.requests() > 0,
        "it is the host abroad that answers"
    );
    abroad
        .mesh
        .apply("rule.yaml", &rule("{mode: SIMPLE, credentialName: other}"))?;
    abroad.soon_refused("UnknownIssuer")?;
    let named = "{mode: SIMPLE, credentialName: ca, sni: else.example}";
    abroad.mesh.apply("rule.yaml", &rule(named))?;
    abroad.soon_refused("not valid for name")?;
    // The mesh's own TLS does not reach that far, and nothing goes there without any.
    abroad
        .mesh
        .apply("rule.yaml", &rule("{mode: ISTIO_MUTUAL}"))?;
    abroad.soon_refused("outside of the mesh")
}

/// A BackendTLSPolicy of the shop.
fn backend_tls_policy(target: &str, validation: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: BackendTLSPolicy\nmetadata: {{name: sealed, namespace: \
         shop}}\nspec:\n  targetRefs: [{target}]\n  validation: {validation}\n"
    )
}

#[test]
fn service_entry_with_tls_by_backend_tls_policy() -> Result<()> {
    let authority = Authority::new("abroad")?;
    let abroad = Abroad::new(&authority.server(&["api.example.com"], None)?)?;
    abroad.mesh.apply("map.yaml", &authority.config_map("ca"))?;
    let target = "{group: networking.istio.io, kind: ServiceEntry, name: abroad}";
    let policy = |hostname: &str| {
        let refs = "[{group: \"\", kind: ConfigMap, name: ca}]";
        backend_tls_policy(
            target,
            &format!("{{caCertificateRefs: {refs}, hostname: {hostname}}}"),
        )
    };
    abroad
        .mesh
        .apply("policy.yaml", &policy("api.example.com"))?;
    abroad.soon_in_tls("api.example.com")?;
    abroad.mesh.apply("policy.yaml", &policy("else.example"))?;
    abroad.soon_refused("not valid for name")
}

#[test]
fn backend_tls_policy_of_one_port() -> Result<()> {
    let authority = Authority::new("shop")?;
    let shop = Shop::in_tls(&authority.server(&["sealed.example"], None)?)?;
    let target = "{group: \"\", kind: Service, name: secure, sectionName: http}";
    let refs = "caCertificateRefs: [{group: \"\", kind: ConfigMap, name: ca}]";
    let policy = backend_tls_policy(target, &format!("{{{refs}, hostname: sealed.example}}"));
    shop.mesh.apply("policy.yaml", &policy)?;
    // Without its certificates nobody is connected by it.
    shop.soon_refused(80, "names ConfigMap shop/ca, which is not there")?;
    shop.mesh.apply("map.yaml", &authority.config_map("ca"))?;
    shop.soon_seen(80, "TLS in the policy's name", |seen| {
        let tls = tls_of(seen)?;
        ensure!(
            tls.server_name.as_deref() == Some("sealed.example"),
            "{tls:?}"
        );
        Ok(())
    })?;
    shop.soon_seen(81, "no TLS at the other port", |seen| {
        ensure!(seen.tls.is_none(), "{seen:?}");
        Ok(())
    })?;
    let output = shop
        .mesh
        .lab
        .node("a")?
        .culvert(&["status", "-o", "yaml"])?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (_, own) = text
        .split_once("kind: BackendTLSPolicy")
        .context("no status")?;
    for said in ["type: Accepted", "type: ResolvedRefs", "sectionName: http"] {
        ensure!(own.contains(said), "{said}: {own}");
    }
    // What a DestinationRule says of TLS goes first.
    shop.mesh.apply(
        "rule.yaml",
        &rule("tls: {mode: SIMPLE, insecureSkipVerify: true, sni: rule.example}"),
    )?;
    shop.soon_seen(80, "TLS in the rule's name", |seen| {
        let tls = tls_of(seen)?;
        ensure!(
            tls.server_name.as_deref() == Some("rule.example"),
            "{tls:?}"
        );
        Ok(())
    })
}
