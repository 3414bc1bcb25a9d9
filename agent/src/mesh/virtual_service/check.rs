//! What makes a VirtualService invalid, as Istio's own validation has it.

use super::{Percent, TextPattern, VirtualFault, VirtualHttpRoute, VirtualMatch, VirtualService};
use crate::mesh::field::{Faults, FieldPath, at};
use crate::mesh::route::{check_header_name, check_regex};

impl VirtualService {
    pub(crate) fn check(&self, faults: &mut Faults) {
        let spec = &self.spec;
        if spec.is_delegate() {
            self.check_delegate(faults);
        }
        if spec.http.is_empty() && spec.tcp.is_empty() && spec.tls.is_empty() {
            faults.add(at!["spec"], "says nothing: set http, tcp or tls");
        }
        for (index, route) in spec.http.iter().enumerate() {
            route.check(&at!["spec", "http", index], faults);
        }
        for (index, route) in spec.tcp.iter().enumerate() {
            if route.route.is_empty() {
                let place = at!["spec", "tcp", index, "route"];
                faults.add(place, "is missing: say where connections go");
            }
        }
    }
}

impl VirtualService {
    /// What only makes sense for one that has hosts.
    fn check_delegate(&self, faults: &mut Faults) {
        let spec = &self.spec;
        if !spec.tcp.is_empty() || !spec.tls.is_empty() || !spec.gateways.is_empty() {
            let place = at!["spec", "hosts"];
            faults.add(
                place,
                "is missing: name at least one host, or have only http, for others to delegate to",
            );
        }
        for (index, route) in spec.http.iter().enumerate() {
            if route.delegate.is_some() {
                let place = at!["spec", "http", index, "delegate"];
                faults.add(
                    place,
                    "cannot delegate: the object has no hosts, so it is a delegate itself",
                );
            }
        }
    }
}

impl VirtualHttpRoute {
    fn check(&self, place: &FieldPath, faults: &mut Faults) {
        let ends = [
            !self.route.is_empty(),
            self.redirect.is_some(),
            self.direct_response.is_some(),
            self.delegate.is_some(),
        ];
        if ends.iter().filter(|end| **end).count() != 1 {
            let rule = "set exactly one of route, redirect, directResponse and delegate";
            faults.add(place.clone(), rule);
        }
        if self
            .delegate
            .as_ref()
            .is_some_and(|one| one.name.is_empty())
        {
            let place = place.join("delegate").join("name");
            faults.add(place, "is missing: name the VirtualService");
        }
        for (index, one) in self.matches.iter().enumerate() {
            one.check(&place.join("match").join(index), faults);
        }
        for (index, one) in self.route.iter().enumerate() {
            let place = place.join("route").join(index);
            if one.destination.host.is_empty() {
                let place = place.join("destination").join("host");
                faults.add(place, "is missing: name the destination");
            }
            if one
                .weight
                .is_some_and(|weight| u32::try_from(weight).is_err())
            {
                faults.add(place.join("weight"), "is not a weight: use 0 or more");
            }
        }
        if let Some(retries) = &self.retries {
            retries.check(&place.join("retries"), faults);
        }
        if let Some(fault) = &self.fault {
            fault.check(&place.join("fault"), faults);
        }
        if let Some(rewrite) = self
            .rewrite
            .as_ref()
            .and_then(|rewrite| rewrite.uri_regex_rewrite.as_ref())
        {
            let place = place.join("rewrite").join("uriRegexRewrite").join("match");
            check_regex(&rewrite.pattern, place, faults);
        }
        for (side, operations) in [
            ("request", &self.headers.request),
            ("response", &self.headers.response),
        ] {
            let place = place.join("headers").join(side);
            for name in operations.set.keys().chain(operations.add.keys()) {
                check_header_name(name, place.join(name.as_str()), faults);
            }
        }
        if let Some(cors) = &self.cors_policy {
            for (index, origin) in cors.allow_origins.iter().enumerate() {
                let place = place.join("corsPolicy").join("allowOrigins").join(index);
                origin.check(&place, faults);
            }
        }
    }
}

impl VirtualMatch {
    fn check(&self, place: &FieldPath, faults: &mut Faults) {
        for (name, pattern) in [
            ("uri", &self.uri),
            ("scheme", &self.scheme),
            ("method", &self.method),
            ("authority", &self.authority),
        ] {
            if let Some(pattern) = pattern {
                pattern.check(&place.join(name), faults);
            }
        }
        for (name, patterns) in [
            ("headers", &self.headers),
            ("withoutHeaders", &self.without_headers),
        ] {
            for (header, pattern) in patterns {
                let place = place.join(name).join(header.as_str());
                check_header_name(header, place.clone(), faults);
                pattern.check(&place, faults);
            }
        }
        for (name, pattern) in &self.query_params {
            pattern.check(&place.join("queryParams").join(name.as_str()), faults);
        }
    }
}

impl TextPattern {
    fn check(&self, place: &FieldPath, faults: &mut Faults) {
        if let Some(pattern) = &self.regex {
            check_regex(pattern, place.join("regex"), faults);
        }
    }
}

impl VirtualFault {
    fn check(&self, place: &FieldPath, faults: &mut Faults) {
        if let Some(delay) = &self.delay {
            let place = place.join("delay");
            if delay.fixed_delay.is_none() {
                faults.add(place.join("fixedDelay"), "is missing: say how long");
            }
            check_percentage(delay.percentage, &place, faults);
        }
        if let Some(abort) = &self.abort {
            let place = place.join("abort");
            let is_status = |status: u16| (200..=599).contains(&status);
            match (abort.http_status, &abort.grpc_status) {
                (None, None) => faults.add(place.clone(), "says nothing: set httpStatus"),
                (Some(status), _) if !is_status(status) => {
                    let problem = format!("{status} is not a status: use 200 to 599");
                    faults.add(place.join("httpStatus"), problem);
                }
                _ => {}
            }
            check_percentage(abort.percentage, &place, faults);
        }
    }
}

fn check_percentage(percentage: Option<Percent>, place: &FieldPath, faults: &mut Faults) {
    if percentage.is_some_and(|one| !(0.0..=100.0).contains(&one.value)) {
        let place = place.join("percentage").join("value");
        faults.add(place, "is not a percentage: use 0 to 100");
    }
}
