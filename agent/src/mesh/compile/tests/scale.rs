//! One change costs what it touches, not what there is. The benchmark measures; this only fails what grows
//! with the mesh.

use std::time::{Duration, Instant};

use super::{Compiler, options, pod_yaml, upserts};

/// Generous: a hundred times what it takes on a slow machine, a fraction of compiling everything.
const BOUND: Duration = Duration::from_millis(100);

#[test]
fn one_changed_pod_among_many_is_cheap() {
    let mut compiler = Compiler::new(options());
    let spaces = 20;
    for space in 0..spaces {
        let mut yaml = String::new();
        for number in 0..50 {
            let service = format!(
                "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{number}, namespace: a{space}}}\nspec: {{selector: {{app: x{number}}}, ports: [{{port: 80}}], clusterIP: 10.1.{space}.{number}}}\n"
            );
            yaml.push_str(&service);
        }
        for number in 0..200 {
            let labels = format!("app: x{}", number % 50);
            yaml += &pod_yaml(
                &format!("a{space}/p{number}"),
                "n1",
                &format!("10.2.{space}.{number}"),
                &labels,
                "",
            );
        }
        compiler.apply(upserts(&yaml));
    }
    assert_eq!(compiler.snapshot().workloads.len(), 200 * spaces);
    let unready = pod_yaml("a3/p7", "n1", "10.2.3.7", "app: x7", "").replace("'True'", "'False'");
    let change = upserts(&unready);
    let before = compiler.snapshot();
    let began = Instant::now();
    let after = compiler.apply(change);
    let took = began.elapsed();
    assert_eq!(after.generation, before.generation + 1);
    assert!(took < BOUND, "{took:?}");
}
