//! How many instructions it takes to make a table of 10,000 routes of one Service, and how many it may: counted by callgrind, so
//! that the figure is the code's and not the machine's. `cargo xtask budget` runs it, in the profile of tests, which is
//! there already; what it takes in time is what `routes` measures.

#![expect(
    missing_docs,
    unused_qualifications,
    reason = "the harness's macros write both"
)]
#![expect(
    clippy::exit,
    clippy::mem_forget,
    reason = "the harness ends the process, and taking a mesh down is not what is counted"
)]

#[path = "many_routes/mesh.rs"]
mod mesh;

use std::hint::black_box;
use std::mem::forget;

use agent::mesh::{Change, Compiler, Interner};
use gungraun::prelude::*;
use gungraun::{Callgrind, EventKind};

/// Fails the benchmark above so many instructions.
fn at_most(instructions: u64) -> LibraryBenchmarkConfig {
    let mut callgrind = Callgrind::default();
    callgrind.hard_limits([(EventKind::Ir, instructions)]);
    let mut config = LibraryBenchmarkConfig::default();
    config.tool(callgrind);
    config
}

/// A mesh, and HTTPRoutes with `rules` each, 10,000 in all, that it does not know yet.
fn unknown(rules: usize) -> (Compiler, Vec<Change>) {
    let mut texts = Interner::default();
    let compiler = mesh::compiler(&mut texts);
    let routes = (0..10_000 / rules).map(|number| mesh::route(number, rules, 0, &mut texts));
    (compiler, routes.collect())
}

/// The same mesh with all of them, and one that has changed.
fn known(rules: usize) -> (Compiler, Change) {
    let (mut compiler, routes) = unknown(rules);
    compiler.apply(routes);
    let changed = mesh::route(0, rules, 1, &mut Interner::default());
    (compiler, changed)
}

#[library_benchmark]
#[bench::of_16_rules_each(args = (unknown(16)), config = at_most(165_000_000))]
#[bench::of_1_rule_each(args = (unknown(1)), config = at_most(300_000_000))]
fn routes_compiled((mut compiler, routes): (Compiler, Vec<Change>)) {
    let published = black_box(compiler.apply(routes));
    forget((published, compiler));
}

#[library_benchmark]
#[bench::of_16_rules(args = (known(16)), config = at_most(46_000_000))]
#[bench::of_1_rule(args = (known(1)), config = at_most(55_000_000))]
fn one_route_changed((mut compiler, changed): (Compiler, Change)) {
    let published = black_box(compiler.apply([changed]));
    forget((published, compiler));
}

library_benchmark_group!(
    name = budget,
    benchmarks = [routes_compiled, one_route_changed]
);
main!(library_benchmark_groups = budget);
