//! Loading, attaching and pinning the eBPF programs: the only user of aya.
//!
//! Links and maps are pinned, so capture stays closed while no agent runs. A new agent puts its own
//! programs into the links it finds: no moment passes in which nothing is attached.

use std::{
    fmt, fs, io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use aya::{
    Ebpf, EbpfLoader,
    programs::{Program, ProgramError},
};

use super::{
    btf::TcpOffsets,
    object::{Globals, ObjectError},
    sys::{self, AttachType, Target},
};

/// The programs attached to the root cgroup, and where.
pub(crate) const CGROUP_HOOKS: [(&str, AttachType); 9] = [
    // First the programs that only follow, last those that capture.
    ("follow_tcp", AttachType::SockOps),
    ("getpeername4", AttachType::Getpeername4),
    ("getpeername6", AttachType::Getpeername6),
    ("recvmsg4", AttachType::Recvmsg4),
    ("recvmsg6", AttachType::Recvmsg6),
    ("sendmsg4", AttachType::Sendmsg4),
    ("sendmsg6", AttachType::Sendmsg6),
    ("connect4", AttachType::Connect4),
    ("connect6", AttachType::Connect6),
];

/// A step of loading that failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    /// The object or its maps were not accepted.
    #[error("the kernel does not accept the eBPF maps")]
    Maps(#[source] Box<aya::EbpfError>),
    /// The verifier or the kernel's feature set refused a program.
    #[error("the kernel does not accept the eBPF program {name}")]
    Program {
        name: &'static str,
        source: Box<ProgramError>,
    },
    /// The embedded object is not ours.
    #[error("the embedded eBPF object has no program {name}")]
    Missing { name: &'static str },
    /// Likewise.
    #[error("the embedded eBPF object is not this agent's")]
    Object(#[from] ObjectError),
    /// A program's descriptor could not be kept.
    #[error("cannot keep the eBPF program {name}")]
    Keep {
        name: &'static str,
        source: io::Error,
    },
}

/// What of the optional this kernel has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Variant {
    /// Whether `bpf_set_retval` exists (Linux 5.18).
    pub(crate) has_set_retval: bool,
    /// Whether tcx links exist (Linux 6.6).
    pub(crate) has_tcx: bool,
    /// Where it counts a connection's bytes; `None` if it does not say, and no connection can be direct.
    pub(crate) tcp: Option<TcpOffsets>,
}

/// The program that follows TCP connections.
const FOLLOW_PROGRAM: &str = "follow_tcp";
/// The program on what each device of a pod receives.
pub(crate) const DEVICE_PROGRAM: &str = "closed_port";
/// The program on what it sends.
pub(crate) const EXIT_PROGRAM: &str = "bar_exit";
/// The program on a pod's `lo`.
pub(crate) const HOLD_PROGRAM: &str = "hold_opening";
/// The program on a pod's network namespace.
pub(crate) const LOOKUP_PROGRAM: &str = "select_listener";

/// Loads the programs, again for each pod. One for the whole process: aya reads all 5 MB of the kernel's own types when a
/// loader is made, which takes it longer than loading a pod's programs.
pub(crate) struct Loader {
    aya: EbpfLoader<'static>,
    globals: Globals,
}

impl Loader {
    /// A loader whose programs have maps of their own, gone with them.
    ///
    /// # Errors
    ///
    /// When the object is not this agent's.
    pub(crate) fn new() -> Result<Self, LoadError> {
        let globals = Globals::of_object()?;
        let mut aya = EbpfLoader::new();
        // No program of ours is relocated by the kernel's types.
        aya.btf(None);
        Ok(Self { aya, globals })
    }

    /// Has programs loaded from now on share the maps pinned in a directory. Those that are missing are made and pinned.
    pub(crate) fn share_maps(&mut self, directory: &Path) {
        for (name, ..) in culvert_ebpf::MAPS.iter().chain(&culvert_ebpf::DIRECT_MAPS) {
            self.aya.map_pin_path(name, directory.join(name));
        }
    }

    /// Makes the maps, or finds them, for programs to be loaded with. `pod` is for those that act in a pod: the cookie of
    /// its network namespace.
    ///
    /// # Errors
    ///
    /// When the kernel does not accept a map.
    pub(crate) fn load(
        &mut self,
        variant: Variant,
        pod: Option<u64>,
    ) -> Result<Programs, LoadError> {
        let mut image = self.globals.image();
        image.set("POD_COOKIE", pod.unwrap_or(0).to_ne_bytes())?;
        let has_set_retval = u32::from(variant.has_set_retval);
        image.set("HAS_SET_RETVAL", has_set_retval.to_ne_bytes())?;
        let offsets = variant.tcp.map(tcp_globals);
        for (name, offset) in offsets.into_iter().flatten() {
            image.set(name, offset.to_ne_bytes())?;
        }
        let object = self.aya.load(image.bytes());
        let object = object.map_err(|error| LoadError::Maps(Box::new(error)))?;
        Ok(Programs(object))
    }

    /// Finds out what this kernel has by trying, not by its version: vendors back-port.
    ///
    /// # Errors
    ///
    /// When it accepts no variant of the programs.
    pub(crate) fn probe_variant(&mut self) -> Result<Variant, LoadError> {
        let with = |has_set_retval| Variant {
            has_set_retval,
            has_tcx: false,
            tcp: None,
        };
        let has_set_retval = self.accepts(with(true), "connect4").is_ok();
        let variant = with(has_set_retval);
        if !has_set_retval {
            self.accepts(variant, "connect4")?;
        }
        let has_tcx = self.accepts(variant, DEVICE_PROGRAM);
        let has_tcx = has_tcx.is_ok_and(|program| accepts_tcx(program.as_fd()));
        let tcp = TcpOffsets::of_kernel().ok();
        let with_tcp = Variant { tcp, ..variant };
        let counts = self.accepts(with_tcp, FOLLOW_PROGRAM).is_ok();
        Ok(Variant {
            has_tcx,
            tcp: tcp.filter(|_| counts),
            ..variant
        })
    }

    /// Tries one program.
    pub(crate) fn accepts(
        &mut self,
        variant: Variant,
        name: &'static str,
    ) -> Result<OwnedFd, LoadError> {
        self.load(variant, None)?.load(name)
    }
}

impl fmt::Debug for Loader {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Loader").finish_non_exhaustive()
    }
}

/// The programs' names for the offsets.
fn tcp_globals(offsets: TcpOffsets) -> [(&'static str, u32); 5] {
    [
        ("BYTES_SENT", offsets.bytes_sent),
        ("BYTES_RETRANSMITTED", offsets.bytes_retransmitted),
        ("BYTES_RECEIVED", offsets.bytes_received),
        ("SOCKET_FLAGS", offsets.flags),
        ("SOCKET_ERROR", offsets.error),
    ]
}

/// Programs with their maps, not in the kernel yet.
pub(crate) struct Programs(Ebpf);

impl Programs {
    /// Loads one of them.
    ///
    /// # Errors
    ///
    /// When the kernel does not accept it, or there is none.
    pub(crate) fn load(&mut self, name: &'static str) -> Result<OwnedFd, LoadError> {
        let refused = |error| LoadError::Program {
            name,
            source: Box::new(error),
        };
        let program = self.0.program_mut(name);
        let program = program.ok_or(LoadError::Missing { name })?;
        match program {
            Program::CgroupSockAddr(program) => program.load(),
            Program::SockOps(program) => program.load(),
            Program::SkLookup(program) => program.load(),
            Program::SchedClassifier(program) => program.load(),
            _ => return Err(LoadError::Missing { name }),
        }
        .map_err(refused)?;
        let fd = program.fd().map_err(refused)?.as_fd();
        let program = fd.try_clone_to_owned();
        program.map_err(|source| LoadError::Keep { name, source })
    }
}

/// Asked to attach to a device that cannot exist, a kernel with tcx objects to the device, one without
/// to the kind of link.
fn accepts_tcx(program: BorrowedFd<'_>) -> bool {
    let no_device = Target::Device(i32::MAX.cast_unsigned());
    let refusal = sys::link_create(program, no_device, AttachType::TcxIngress);
    refusal.is_err_and(|error| error.raw_os_error() == Some(libc::ENODEV))
}

/// A link and the name under which it is pinned.
#[derive(Debug)]
pub(crate) struct PinnedLink {
    link: OwnedFd,
    pin: PathBuf,
}

impl PinnedLink {
    /// Puts a program into the link pinned under a name, or into a new one if that link is missing or
    /// no longer attached. The new link is attached before the old one is let go.
    pub(crate) fn establish(
        pin: PathBuf,
        program: BorrowedFd<'_>,
        target: Target<'_>,
        attach: AttachType,
    ) -> io::Result<Self> {
        let found = match sys::open_pin(&pin) {
            Ok(link) => Some(link),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        if let Some(link) = found {
            let reusable = sys::link_is_attached(link.as_fd())?
                && sys::link_update(link.as_fd(), program).is_ok();
            if reusable {
                return Ok(Self { link, pin });
            }
        }
        let link = sys::link_create(program, target, attach)?;
        unlink(&pin)?;
        sys::pin(link.as_fd(), &pin)?;
        Ok(Self { link, pin })
    }

    /// Makes a link whole again: gives it back its name if only that is missing, or makes a new one.
    pub(crate) fn restore(
        &mut self,
        program: BorrowedFd<'_>,
        target: Target<'_>,
        attach: AttachType,
    ) -> io::Result<()> {
        if sys::link_is_attached(self.link.as_fd())? {
            return if self.pin.exists() {
                Ok(())
            } else {
                sys::pin(self.link.as_fd(), &self.pin)
            };
        }
        *self = Self::establish(self.pin.clone(), program, target, attach)?;
        Ok(())
    }

    /// Whether the link still acts and would still outlive the agent.
    pub(crate) fn is_whole(&self) -> bool {
        self.pin.exists() && sys::link_is_attached(self.link.as_fd()).unwrap_or(false)
    }

    /// Detaches the program.
    pub(crate) fn remove(self) -> io::Result<()> {
        unlink(&self.pin)
    }
}

/// Removes a pin; it is no error if there is none.
pub(crate) fn unlink(pin: &Path) -> io::Result<()> {
    match fs::remove_file(pin) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
