//! What every service that talks to browsers needs: what the client wants, what it gets when it
//! may not pass, how pages look, cookies, and where a redirect may lead.

pub(crate) mod accept;
pub mod cookie;
pub mod credentials;
pub mod negotiate;
pub mod page;
pub mod redirect;
pub mod refusal;
pub mod request_id;
pub mod sign_in_link;
