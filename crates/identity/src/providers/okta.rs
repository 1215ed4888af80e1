//! Okta. Groups need the scope `groups` and a claim set up there.

use super::{Flavor, PLAIN};

pub(crate) const FLAVOR: Flavor = Flavor {
    name: "okta",
    ..PLAIN
};
