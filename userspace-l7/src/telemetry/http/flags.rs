//! Why a request went as it did, in Envoy's closed vocabulary of response flags.

use std::fmt;
use std::ops::{BitOr, BitOrAssign};

/// One flag. In Envoy's order, which is the order in which several are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum RequestFlag {
    /// `UH`: the backend has no healthy endpoint. 503.
    NoHealthyUpstream,
    /// `UT`: the route's timeout, or the last attempt's, ran out. 504.
    UpstreamTimeout,
    /// `LR`: the connection to the endpoint was reset by us.
    LocalReset,
    /// `UF`: no connection to the endpoint could be made. 503.
    UpstreamConnectionFailure,
    /// `UC`: the endpoint's connection ended before its response did.
    UpstreamConnectionTermination,
    /// `UO`: a limit of the backend is reached (circuit breaking). 503.
    UpstreamOverflow,
    /// `NR`: no route matches. 404.
    NoRoute,
    /// `DI`: a delay was injected.
    DelayInjected,
    /// `FI`: an abort was injected.
    FaultInjected,
    /// `RL`: limited by rate. 429.
    RateLimited,
    /// `UAEX`: an external authorizer refused it. 403, or what it said.
    UnauthorizedExternal,
    /// `RLSE`: a rate limit service had nothing to say, and nothing passes without its word. 500.
    RateLimitServiceError,
    /// `DC`: the client went away before its response was complete.
    DownstreamReset,
    /// `URX`: the last retry failed too.
    RetriesExhausted,
    /// `SI`: nothing moved for too long.
    IdleTimeout,
    /// `DPE`: the client broke the protocol. 400.
    DownstreamProtocolError,
    /// `UPE`: the endpoint broke the protocol. 502.
    UpstreamProtocolError,
    /// `NC`: the backend does not exist. 500 or 503.
    NoCluster,
    /// `DF`: the name that the client asked for leads nowhere. 503.
    DnsResolutionFailure,
}

impl RequestFlag {
    const ALL: [Self; 19] = [
        Self::NoHealthyUpstream,
        Self::UpstreamTimeout,
        Self::LocalReset,
        Self::UpstreamConnectionFailure,
        Self::UpstreamConnectionTermination,
        Self::UpstreamOverflow,
        Self::NoRoute,
        Self::DelayInjected,
        Self::FaultInjected,
        Self::RateLimited,
        Self::UnauthorizedExternal,
        Self::RateLimitServiceError,
        Self::DownstreamReset,
        Self::RetriesExhausted,
        Self::IdleTimeout,
        Self::DownstreamProtocolError,
        Self::UpstreamProtocolError,
        Self::NoCluster,
        Self::DnsResolutionFailure,
    ];

    /// The short form, as logs and labels have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NoHealthyUpstream => "UH",
            Self::UpstreamTimeout => "UT",
            Self::LocalReset => "LR",
            Self::UpstreamConnectionFailure => "UF",
            Self::UpstreamConnectionTermination => "UC",
            Self::UpstreamOverflow => "UO",
            Self::NoRoute => "NR",
            Self::DelayInjected => "DI",
            Self::FaultInjected => "FI",
            Self::RateLimited => "RL",
            Self::UnauthorizedExternal => "UAEX",
            Self::RateLimitServiceError => "RLSE",
            Self::DownstreamReset => "DC",
            Self::RetriesExhausted => "URX",
            Self::IdleTimeout => "SI",
            Self::DownstreamProtocolError => "DPE",
            Self::UpstreamProtocolError => "UPE",
            Self::NoCluster => "NC",
            Self::DnsResolutionFailure => "DF",
        }
    }

    fn bit(self) -> u32 {
        1 << self as u8
    }

    /// Its place among Envoy's own (`envoy.data.accesslog.v3.ResponseFlags`), of which some never occur here.
    fn envoys_place(self) -> u8 {
        match self {
            Self::NoHealthyUpstream => 1,
            Self::UpstreamTimeout => 2,
            Self::LocalReset => 3,
            Self::UpstreamConnectionFailure => 5,
            Self::UpstreamConnectionTermination => 6,
            Self::UpstreamOverflow => 7,
            Self::NoRoute => 8,
            Self::DelayInjected => 9,
            Self::FaultInjected => 10,
            Self::RateLimited => 11,
            Self::UnauthorizedExternal => 12,
            Self::RateLimitServiceError => 13,
            Self::DownstreamReset => 14,
            Self::RetriesExhausted => 15,
            Self::IdleTimeout => 16,
            Self::DownstreamProtocolError => 18,
            Self::UpstreamProtocolError => 23,
            Self::NoCluster => 24,
            Self::DnsResolutionFailure => 26,
        }
    }
}

/// Any number of flags: `UF,URX` is a connection that failed once more than may be tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct RequestFlags(u32);

impl RequestFlags {
    /// Nothing to say.
    pub const NONE: Self = Self(0);

    /// Whether `flag` is among them.
    pub fn contains(self, flag: RequestFlag) -> bool {
        self.0 & flag.bit() != 0
    }

    /// All of them as Envoy's attribute `response.flags` has them.
    pub(super) fn envoys_bits(self) -> u32 {
        self.iter()
            .fold(0, |bits, flag| bits | 1 << flag.envoys_place())
    }

    /// Each of them, in Envoy's order.
    pub fn iter(self) -> impl Iterator<Item = RequestFlag> {
        let all = RequestFlag::ALL.into_iter();
        all.filter(move |flag| self.contains(*flag))
    }
}

impl From<RequestFlag> for RequestFlags {
    fn from(flag: RequestFlag) -> Self {
        Self(flag.bit())
    }
}

impl BitOr for RequestFlag {
    type Output = RequestFlags;

    fn bitor(self, other: Self) -> RequestFlags {
        RequestFlags::from(self) | other
    }
}

impl BitOr<RequestFlag> for RequestFlags {
    type Output = Self;

    fn bitor(self, flag: RequestFlag) -> Self {
        Self(self.0 | flag.bit())
    }
}

impl BitOrAssign<RequestFlag> for RequestFlags {
    fn bitor_assign(&mut self, flag: RequestFlag) {
        self.0 |= flag.bit();
    }
}

/// Joined by commas; `-` for none.
impl fmt::Display for RequestFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::NONE {
            return f.write_str("-");
        }
        for (place, flag) in self.iter().enumerate() {
            if place > 0 {
                f.write_str(",")?;
            }
            f.write_str(flag.as_str())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{RequestFlag, RequestFlags};

    #[test]
    fn flags_are_printed_in_envoys_order_whatever_the_order_they_were_raised_in() {
        assert_eq!(RequestFlags::NONE.to_string(), "-");
        assert_eq!(RequestFlags::from(RequestFlag::NoRoute).to_string(), "NR");
        let mut flags = RequestFlags::from(RequestFlag::RetriesExhausted);
        flags |= RequestFlag::UpstreamConnectionFailure;
        assert_eq!(flags.to_string(), "UF,URX");
    }

    #[test]
    fn every_flag_has_a_bit_and_a_word_of_its_own() {
        let everything = RequestFlag::ALL
            .into_iter()
            .fold(RequestFlags::NONE, |flags, flag| flags | flag);
        assert_eq!(
            everything.to_string(),
            "UH,UT,LR,UF,UC,UO,NR,DI,FI,RL,UAEX,RLSE,DC,URX,SI,DPE,UPE,NC,DF"
        );
    }
}
