//! Which route a request is for.
//!
//! [`target`] brings host and path into the one form that match, policy and upstream share, or
//! refuses the request; [`table`] finds the route. Both are pure.

mod host;
mod path;
pub mod table;
pub mod target;

pub use host::{Authority, HostError};
pub use path::{PathError, normalize_path};
pub use table::{Found, RouteTable};
pub use target::{RawTarget, Target, TargetError, TargetForm, authority_of};
