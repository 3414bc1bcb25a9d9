//! The container image: one statically linked program, the authorities that servers of the internet are certified by, and
//! the list of what it is made of, from scratch. Built by buildah, which needs neither a daemon nor a registry.

mod parts;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use self::parts::Part;
use crate::{compile, require_root, setup, shell};

/// The name that `deploy/` starts it by.
const NAME: &str = "culvert";
/// Where the program is in it.
const PROGRAM: &str = "/culvert";
/// The authorities of the machine that builds, and where the program looks for them: the same place.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";
/// Most bytes of the archive: a node that comes up fetches it before any pod of the mesh can start.
const MOST_BYTES: u64 = 40_000_000;

/// Builds the program and the image, and checks both.
pub(crate) fn run() -> Result<()> {
    require_root("building an image")?;
    compile::ebpf(&setup::run()?)?;
    setup::for_images()?;
    let root = shell::root()?;
    let directory = root.join("target/image");
    fs::create_dir_all(&directory).context("cannot create target/image")?;

    shell::step("static program");
    let host = host()?;
    let program = program(&root, &host)?;
    shell::step("list of parts");
    let parts = directory.join("culvert.cdx.json");
    list_parts(&root, &host, &parts)?;
    shell::step("image");
    let version = env!("CARGO_PKG_VERSION");
    let archive = directory.join(format!("{NAME}-{version}.tar"));
    let storage = Storage::new(directory.join("buildah"));
    build(&storage, [&program, &parts], &archive, version)?;
    drop(storage);
    prove(&directory, &archive)?;

    let [program, archive_size] = [&program, &archive].map(|path| size(path));
    let (program, archive_size) = (program?, archive_size?);
    ensure!(
        archive_size <= MOST_BYTES,
        "the image has {archive_size} bytes, more than {MOST_BYTES}"
    );
    let megabytes = |bytes: u64| format!("{}.{} MB", bytes / 1_000_000, bytes / 100_000 % 10);
    shell::note(&format!(
        "{NAME}:{version}, {} (the program: {}): {}",
        megabytes(archive_size),
        megabytes(program),
        archive.display()
    ));
    shell::note(&format!("kind load image-archive {}", archive.display()));
    Ok(())
}

/// What the compiler compiles for by itself.
fn host() -> Result<String> {
    let compiler = shell::output(Command::new("rustc").arg("-vV")).context("there is no rustc")?;
    let host = compiler
        .lines()
        .find_map(|line| line.strip_prefix("host: "));
    let host = host.context("rustc does not say what it compiles for")?;
    Ok(host.to_owned())
}

/// Compiles the program without debug information and with all that it calls linked in.
fn program(root: &Path, host: &str) -> Result<PathBuf> {
    let mut cargo = shell::cargo()?;
    // With a target of its own, so that build scripts and macros are linked as ever.
    cargo
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env("CARGO_PROFILE_RELEASE_DEBUG", "none")
        .env("CARGO_PROFILE_RELEASE_STRIP", "symbols")
        .args(["build", "--release", "--package", "agent", "--bin", NAME])
        .args(["--target", host]);
    shell::run(&mut cargo).context("the program does not build")?;
    let program = root.join("target").join(host).join("release").join(NAME);
    let headers = shell::output(Command::new("readelf").arg("-l").arg(&program));
    let headers = headers.context("readelf cannot read the program")?;
    if headers.contains("INTERP") {
        bail!("the program wants a dynamic linker, which an image from scratch has not");
    }
    Ok(program)
}

/// Writes what the program is made of.
fn list_parts(root: &Path, host: &str, to: &Path) -> Result<()> {
    let tree = |directory: &Path, target: &str, package: &str| {
        let mut cargo = shell::cargo()?;
        cargo
            .current_dir(directory)
            .args(["tree", "--package", package, "--target", target])
            .args(["--edges", "normal,no-proc-macro", "--prefix", "none"])
            .args(["--format", "{p}\t{l}"]);
        let tree = shell::output(&mut cargo);
        tree.with_context(|| format!("`cargo tree --package {package}` fails"))
    };
    let mut parts = parts::crates(&tree(root, host, "agent")?);
    // Compiled for the kernel, and embedded.
    let embedded = tree(&root.join("ebpf"), "bpfel-unknown-none", "culvert-ebpf")?;
    parts.extend(parts::crates(&embedded));
    let libc = debian_version("libc6-dev").context("nobody knows which C library is linked")?;
    let authorities = debian_version("ca-certificates");
    let authorities = authorities.context("nobody knows whose authorities these are")?;
    let compiler = shell::output(Command::new("rustc").arg("--version"));
    let compiler = compiler.context("there is no rustc")?;
    let standard = compiler.split_whitespace().nth(1).unwrap_or_default();
    parts.extend([
        Part {
            name: "glibc".to_owned(),
            version: libc.clone(),
            license: "LGPL-2.1-or-later".to_owned(),
            purl: Some(format!("pkg:deb/debian/libc6-dev@{libc}")),
        },
        Part {
            name: "ca-certificates".to_owned(),
            version: authorities.clone(),
            license: "MPL-2.0 AND GPL-2.0-or-later".to_owned(),
            purl: Some(format!("pkg:deb/debian/ca-certificates@{authorities}")),
        },
        Part {
            name: "rust-std".to_owned(),
            version: standard.to_owned(),
            license: "MIT OR Apache-2.0".to_owned(),
            purl: Some(format!("pkg:github/rust-lang/rust@{standard}")),
        },
    ]);
    for known in ["rustls", "aws-lc-sys", "aya-ebpf"] {
        ensure!(
            parts.iter().any(|part| part.name == known),
            "{known} is not listed, which is in it"
        );
    }
    let bill = parts::bill((NAME, env!("CARGO_PKG_VERSION")), &parts);
    shell::note(&format!("{} parts: {}", parts.len(), to.display()));
    fs::write(to, format!("{bill:#}\n")).with_context(|| format!("cannot write {}", to.display()))
}

/// Which version of a package this machine has.
fn debian_version(package: &str) -> Result<String> {
    let query = ["--show", "--showformat=${Version}", package];
    let version = shell::output(Command::new("dpkg-query").args(query));
    version.with_context(|| format!("this is no Debian, or {package} is not installed"))
}

/// Where buildah keeps what it works on; removed with the value.
struct Storage(PathBuf);

impl Storage {
    fn new(directory: PathBuf) -> Self {
        Self(directory)
    }

    fn buildah(&self, words: &[&str]) -> Command {
        let mut command = shell::foreign("buildah");
        command
            .arg("--root")
            .arg(self.0.join("root"))
            .arg("--runroot")
            .arg(self.0.join("run"))
            // Directories: no kernel module, no mount.
            .args(["--storage-driver", "vfs"])
            .args(words);
        command
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        // The next build makes it anew.
        drop(fs::remove_dir_all(&self.0));
    }
}

fn build(
    storage: &Storage,
    [program, parts]: [&Path; 2],
    archive: &Path,
    version: &str,
) -> Result<()> {
    let made = shell::output(&mut storage.buildah(&["from", "scratch"]));
    let made = made.context("buildah cannot begin an image")?;
    let container = made.trim();
    let copy = |from: &Path, to: &str, mode: &str| {
        let mut command = storage.buildah(&["copy", "--quiet", "--chmod", mode, container]);
        shell::run(command.arg(from).arg(to))
    };
    copy(program, PROGRAM, "0755")?;
    copy(parts, "/culvert.cdx.json", "0644")?;
    ensure!(
        Path::new(AUTHORITIES).is_file(),
        "this machine has no {AUTHORITIES}, so the image would trust nobody outside of the mesh: install ca-certificates"
    );
    copy(Path::new(AUTHORITIES), AUTHORITIES, "0644")?;
    let revision = shell::output(Command::new("git").args(["rev-parse", "HEAD"]));
    let revision = revision.unwrap_or_default();
    let entrypoint = format!("[\"{PROGRAM}\"]");
    let labels = [
        ("title", NAME),
        ("version", version),
        ("revision", revision.trim()),
        ("licenses", "Apache-2.0"),
        ("description", "A node agent for service meshes"),
    ];
    let mut config = storage.buildah(&["config", "--entrypoint", &entrypoint, "--cmd", ""]);
    for (label, value) in labels {
        config
            .arg("--label")
            .arg(format!("org.opencontainers.image.{label}={value}"));
    }
    // Root: pods' network namespaces are entered, and programs attached. What it keeps of that is in deploy/base.
    shell::run(config.args(["--user", "0:0", container]))?;
    // buildah adds to an archive rather than replace it.
    drop(fs::remove_file(archive));
    let destination = format!("docker-archive:{}:{NAME}:{version}", archive.display());
    let commit = [
        "commit",
        "--quiet",
        "--format",
        "docker",
        "--timestamp",
        "0",
    ];
    shell::run(storage.buildah(&commit).args([container, &destination]))
        .context("buildah cannot write the image")
}

/// Runs the program where nothing else is.
fn prove(directory: &Path, archive: &Path) -> Result<()> {
    let (unpacked, root) = (directory.join("unpacked"), directory.join("root"));
    for fresh in [&unpacked, &root] {
        drop(fs::remove_dir_all(fresh));
        fs::create_dir_all(fresh).with_context(|| format!("cannot create {}", fresh.display()))?;
    }
    shell::run(
        Command::new("tar")
            .arg("-xf")
            .arg(archive)
            .arg("-C")
            .arg(&unpacked),
    )?;
    for entry in fs::read_dir(&unpacked).context("cannot list the archive")? {
        let path = entry.context("cannot list the archive")?.path();
        // Its one layer; others of that name are links to it.
        let is_layer = path.extension().is_some_and(|extension| extension == "tar");
        if is_layer && path.is_file() && !path.is_symlink() {
            shell::run(
                Command::new("tar")
                    .arg("-xf")
                    .arg(&path)
                    .arg("-C")
                    .arg(&root),
            )?;
        }
    }
    shell::run(Command::new("chroot").arg(&root).args([PROGRAM, "version"]))
        .context("the program does not run from scratch")?;
    let authorities = root.join(AUTHORITIES.trim_start_matches('/'));
    let text = fs::read_to_string(&authorities);
    ensure!(
        text.is_ok_and(|text| text.contains("BEGIN CERTIFICATE")),
        "{AUTHORITIES} of the image holds no certificates"
    );
    for done in [&unpacked, &root] {
        fs::remove_dir_all(done).with_context(|| format!("cannot remove {}", done.display()))?;
    }
    Ok(())
}

fn size(path: &Path) -> Result<u64> {
    let metadata = fs::metadata(path);
    Ok(metadata
        .with_context(|| format!("{} is gone", path.display()))?
        .len())
}
