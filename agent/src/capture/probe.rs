//! Whether this kernel can do what capture needs, found out by doing it. Leaves nothing behind.

use std::{
    error::Error,
    fs,
    os::fd::{AsFd, OwnedFd},
};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, setsockopt, socket, sockopt::Ipv6V6Only,
};

use super::{
    btf::TcpOffsets,
    control::find_cgroup2,
    netns,
    programs::{CGROUP_HOOKS, DEVICE_PROGRAM, HOLD_PROGRAM, LOOKUP_PROGRAM, Loader, Variant},
    routing::Netlink,
    sock_diag, sys,
};

/// Why something cannot be used: the whole chain of causes, first the nearest.
type Reason = Box<dyn Error + Send + Sync>;

/// The kernel's own type information, without which a map of socket storage cannot be made.
pub(crate) fn btf() -> Result<(), Reason> {
    fs::metadata("/sys/kernel/btf/vmlinux")?;
    Ok(())
}

/// A mounted cgroup2 hierarchy, for the programs to be attached to.
pub(crate) fn cgroup2() -> Result<(), Reason> {
    fs::File::open(find_cgroup2(None)?)?;
    Ok(())
}

/// The bpf file system, mounted or not.
pub(crate) fn bpffs() -> Result<(), Reason> {
    let known = fs::read_to_string("/proc/filesystems")?;
    if !known
        .lines()
        .any(|line| line.split_whitespace().last() == Some("bpf"))
    {
        return Err("the kernel has no bpf file system".into());
    }
    fs::metadata("/sys/fs/bpf")?;
    Ok(())
}

/// Cookies that name network namespaces.
pub(crate) fn netns_cookie() -> Result<(), Reason> {
    netns::current_cookie()?;
    Ok(())
}

/// The programs on the root cgroup.
pub(crate) fn cgroup_programs() -> Result<(), Reason> {
    load(CGROUP_HOOKS.map(|(name, _)| name))
}

/// The program that chooses listeners.
pub(crate) fn sk_lookup() -> Result<(), Reason> {
    load([LOOKUP_PROGRAM])
}

/// Refusals with an error of the program's choice.
pub(crate) fn set_retval() -> Result<(), Reason> {
    if !Loader::new()?.probe_variant()?.has_set_retval {
        return Err("bpf_set_retval is missing".into());
    }
    Ok(())
}

/// What a connection between two pods has carried.
pub(crate) fn tcp_byte_counts() -> Result<(), Reason> {
    TcpOffsets::of_kernel()?;
    if Loader::new()?.probe_variant()?.tcp.is_none() {
        return Err("the programs that read them are not accepted".into());
    }
    Ok(())
}

/// Links of programs to devices.
pub(crate) fn tcx() -> Result<(), Reason> {
    load([DEVICE_PROGRAM, HOLD_PROGRAM])?;
    if !Loader::new()?.probe_variant()?.has_tcx {
        return Err("tcx links are missing".into());
    }
    Ok(())
}

/// Routing by mark.
pub(crate) fn policy_routing() -> Result<(), Reason> {
    Netlink::open()?.observe()?;
    Ok(())
}

/// Listening sockets for connections to addresses of others.
pub(crate) fn transparent_sockets() -> Result<(), Reason> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let listener: OwnedFd = socket(AddressFamily::Inet6, SockType::Stream, flags, None)?;
    setsockopt(&listener, Ipv6V6Only, &false)?;
    sys::set_option(listener.as_fd(), libc::SOL_IP, libc::IP_TRANSPARENT, 1)?;
    sys::set_option(listener.as_fd(), libc::SOL_IPV6, libc::IPV6_TRANSPARENT, 1)?;
    Ok(())
}

/// Ending other processes' connections.
pub(crate) fn destroy_sockets() -> Result<(), Reason> {
    sock_diag::can_destroy()?;
    Ok(())
}

fn load<const N: usize>(names: [&'static str; N]) -> Result<(), Reason> {
    let mut loader = Loader::new()?;
    // Not `probe_variant`, which would report a missing helper where the program is at fault.
    let variants = [true, false].map(|has_set_retval| Variant {
        has_set_retval,
        tcp: None,
        has_tcx: false,
    });
    let [newest, oldest] = variants.map(|variant| {
        let mut programs = loader.load(variant, None)?;
        names
            .iter()
            .try_for_each(|name| programs.load(name).map(drop))
    });
    match (newest, oldest) {
        (Ok(()), _) | (_, Ok(())) => Ok(()),
        (_, Err(error)) => Err(error.into()),
    }
}
