//! What drivers share: pauses between attempts, what to say of a TLS failure, times to live.

mod backoff;
mod tls;
mod ttl;

pub use backoff::Backoff;
pub use tls::{TlsAdvice, tls_reason};
pub use ttl::ttl_millis;
