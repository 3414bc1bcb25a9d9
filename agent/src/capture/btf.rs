//! Where the running kernel keeps the fields of its structures, from its own type information (BTF).
//!
//! Only what the accounts of direct connections need: aya relocates programs against no fields of its own accord, and
//! a number that is right on one kernel reads something else on the next.

use std::{fs, io};

/// The kernel's description of itself.
const KERNEL: &str = "/sys/kernel/btf/vmlinux";

/// Magic number and size of `struct btf_header` up to what is read of it (`include/uapi/linux/btf.h`).
const MAGIC: u16 = 0xeb9f;
const HEADER: usize = 24;
/// Sizes of `struct btf_type` and `struct btf_member`.
const TYPE: usize = 12;
const MEMBER: usize = 12;

/// `BTF_KIND_*`.
mod kind {
    pub(super) const INT: u32 = 1;
    pub(super) const ARRAY: u32 = 3;
    pub(super) const STRUCT: u32 = 4;
    pub(super) const UNION: u32 = 5;
    pub(super) const ENUM: u32 = 6;
    pub(super) const FUNC_PROTO: u32 = 13;
    pub(super) const VAR: u32 = 14;
    pub(super) const DATASEC: u32 = 15;
    pub(super) const DECL_TAG: u32 = 17;
    pub(super) const ENUM64: u32 = 19;
}

/// How deep anonymous structures and unions are looked into.
const MAX_DEPTH: usize = 8;

/// Offsets of what says how many bytes a TCP connection has carried, from the start of its `struct tcp_sock`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TcpOffsets {
    pub(crate) bytes_sent: u32,
    pub(crate) bytes_retransmitted: u32,
    pub(crate) bytes_received: u32,
    /// Of `struct sock_common`, with which it begins.
    pub(crate) flags: u32,
    /// Of `struct sock`, with which it begins.
    pub(crate) error: u32,
}

impl TcpOffsets {
    /// Those of the running kernel.
    ///
    /// # Errors
    ///
    /// When the kernel was built without its description, or describes something else.
    pub(crate) fn of_kernel() -> io::Result<Self> {
        let description = fs::read(KERNEL)?;
        let types = Types::parse(&description).ok_or(io::ErrorKind::InvalidData)?;
        Self::find(&types).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
    }

    fn find(types: &Types<'_>) -> Option<Self> {
        // One begins with the other; if not, offsets from the start of one mean nothing in the other.
        let nested = [
            ("tcp_sock", "inet_conn"),
            ("inet_connection_sock", "icsk_inet"),
            ("inet_sock", "sk"),
            ("sock", "__sk_common"),
        ];
        let is_nested = |(outer, inner)| types.offset(outer, inner) == Some(0);
        if !nested.into_iter().all(is_nested) {
            return None;
        }
        Some(Self {
            bytes_sent: types.offset("tcp_sock", "bytes_sent")?,
            bytes_retransmitted: types.offset("tcp_sock", "bytes_retrans")?,
            bytes_received: types.offset("tcp_sock", "bytes_received")?,
            flags: types.offset("sock_common", "skc_flags")?,
            error: types.offset("sock", "sk_err")?,
        })
    }
}

/// The types that a description holds.
struct Types<'a> {
    strings: &'a [u8],
    /// Each type with what follows it, in the order of their ids, which begin at 1.
    types: Vec<&'a [u8]>,
}

impl<'a> Types<'a> {
    /// Reads a description in this machine's byte order; `None` if it is none.
    fn parse(description: &'a [u8]) -> Option<Self> {
        let magic = description.first_chunk().copied().map(u16::from_ne_bytes)?;
        if magic != MAGIC || description.len() < HEADER {
            return None;
        }
        let [header, type_at, type_length, string_at, string_length] =
            [4, 8, 12, 16, 20].map(|at| word(description, at).map_or(usize::MAX, |n| n as usize));
        let body = description.get(header..)?;
        let section = |at: usize, length: usize| body.get(at..)?.get(..length);
        let strings = section(string_at, string_length)?;
        let mut rest = section(type_at, type_length)?;
        let mut types = Vec::new();
        while !rest.is_empty() {
            let info = word(rest, 4)?;
            let (one, behind) = rest.split_at_checked(TYPE + length_behind(info))?;
            types.push(one);
            rest = behind;
        }
        Some(Self { strings, types })
    }

    /// The offset of a member in bytes, also of one in an anonymous part of the structure.
    fn offset(&self, structure: &str, member: &str) -> Option<u32> {
        let is_meant = |one: &&&[u8]| {
            word(one, 4).is_some_and(|info| kind_of(info) == kind::STRUCT)
                && word(one, 0).and_then(|at| self.string(at)) == Some(structure.as_bytes())
        };
        let found = self.types.iter().find(is_meant)?;
        let bits = self.bits(found, member.as_bytes(), MAX_DEPTH)?;
        bits.is_multiple_of(8).then_some(bits / 8)
    }

    fn bits(&self, composite: &[u8], wanted: &[u8], depth: usize) -> Option<u32> {
        let info = word(composite, 4)?;
        if !matches!(kind_of(info), kind::STRUCT | kind::UNION) || depth == 0 {
            return None;
        }
        let has_bitfields = info >> 31 != 0;
        composite.get(TYPE..)?.chunks_exact(MEMBER).find_map(|one| {
            let (name, of, at) = (word(one, 0)?, word(one, 4)?, word(one, 8)?);
            let at = if has_bitfields { at & 0x00ff_ffff } else { at };
            match self.string(name)? {
                found if found == wanted => Some(at),
                [] => {
                    let index = (of as usize).checked_sub(1)?;
                    let inner = self.types.get(index)?;
                    at.checked_add(self.bits(inner, wanted, depth - 1)?)
                }
                _ => None,
            }
        })
    }

    fn string(&self, at: u32) -> Option<&'a [u8]> {
        let text = self.strings.get(at as usize..)?;
        let end = text.iter().position(|byte| *byte == 0)?;
        text.get(..end)
    }
}

fn kind_of(info: u32) -> u32 {
    (info >> 24) & 0x1f
}

/// How many bytes follow a `struct btf_type`.
fn length_behind(info: u32) -> usize {
    let each = match kind_of(info) {
        kind::INT | kind::VAR | kind::DECL_TAG => return 4,
        kind::ARRAY => return 12,
        kind::STRUCT | kind::UNION | kind::DATASEC | kind::ENUM64 => 12,
        kind::ENUM | kind::FUNC_PROTO => 8,
        _ => 0,
    };
    each * (info & 0xffff) as usize
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    const STRINGS: &[u8] = b"\0outer\0first\0inner\0";
    const OUTER: u32 = 1;
    const FIRST: u32 = 7;
    const INNER: u32 = 13;

    /// `struct outer { int first; union { int inner; }; }`, an int and an array before it.
    fn description() -> Vec<u8> {
        let int = [0, kind::INT << 24, 4, 32];
        let array = [0, kind::ARRAY << 24, 0, 1, 1, 3];
        let union = [0, (kind::UNION << 24) | 1, 4, INNER, 1, 32];
        let outer = [OUTER, (kind::STRUCT << 24) | 2, 8, FIRST, 1, 0, 0, 3, 32];
        let types: Vec<u32> = [&int[..], &array, &union, &outer].concat();
        let types: Vec<u8> = types.into_iter().flat_map(u32::to_ne_bytes).collect();
        let length = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap();
        let header = [24, 0, length(&types), length(&types), length(STRINGS)];
        let mut description = Vec::from(MAGIC.to_ne_bytes());
        description.extend([1, 0]);
        description.extend(header.into_iter().flat_map(u32::to_ne_bytes));
        description.extend(types);
        description.extend(STRINGS);
        description
    }

    #[test]
    fn members_are_found_also_in_anonymous_parts() {
        let description = description();
        let types = Types::parse(&description).unwrap();
        let table = [
            ("first", Some(0)),
            // The union begins at bit 32, its member at bit 32 of it.
            ("inner", Some(8)),
            ("outer", None),
        ];
        for (member, offset) in table {
            assert_eq!(types.offset("outer", member), offset, "{member}");
        }
        assert_eq!(types.offset("another", "first"), None);
    }

    #[test]
    fn a_truncated_description_is_none() {
        let description = description();
        for length in 0..description.len() {
            assert!(Types::parse(&description[..length]).is_none(), "{length}");
        }
    }

    #[test]
    fn the_running_kernel_says_where_it_counts_bytes() {
        let offsets = TcpOffsets::of_kernel().unwrap();
        assert!(offsets.bytes_sent > offsets.error, "{offsets:?}");
        assert!(offsets.flags < offsets.error, "{offsets:?}");
    }
}
