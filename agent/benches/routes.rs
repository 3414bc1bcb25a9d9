//! How long many routes of one Service take to become a table: all of them at once, and one that changes among
//! the others.

#[path = "many_routes/mesh.rs"]
mod mesh;

use std::hint::black_box;

use agent::mesh::{Change, Interner};
use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};

use mesh::{compiler, route};

/// Rules in all: a small mesh, and the one that the budget of 100 ms is for.
const SIZES: [usize; 2] = [1_000, 10_000];
/// Rules of one HTTPRoute: the fewest, and the most that Gateway API allows.
const RULES: [usize; 2] = [1, 16];

fn many_routes_of_one_service(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("compile");
    group.sample_size(10);
    // One for all objects, as each source of them has.
    let mut texts = Interner::default();
    for (size, rules) in SIZES
        .iter()
        .flat_map(|size| RULES.map(|rules| (*size, rules)))
    {
        let name = format!("{rules} of a route");
        let routes: Vec<Change> = (0..size / rules)
            .map(|number| route(number, rules, 0, &mut texts))
            .collect();
        group.bench_with_input(BenchmarkId::new(&name, size), &routes, |bencher, routes| {
            bencher.iter_batched(
                || (compiler(&mut texts), routes.clone()),
                // The compiler comes back, so that its end is not timed.
                |(mut compiler, routes)| (black_box(compiler.apply(routes)), compiler),
                BatchSize::LargeInput,
            );
        });
        let mut compiler = compiler(&mut texts);
        compiler.apply(routes);
        let states = [1, 2].map(|turn| route(0, rules, turn, &mut texts));
        let mut turns = states.iter().cycle();
        group.bench_function(
            BenchmarkId::new(format!("one changes, {name}"), size),
            |bencher| {
                bencher.iter(|| black_box(compiler.apply(turns.next().cloned())));
            },
        );
    }
    group.finish();
}

criterion_group!(benches, many_routes_of_one_service);
criterion_main!(benches);
