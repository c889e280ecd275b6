//! `HALTER_LOG`: what the libraries trace, on stderr.

use anyhow::Context;
use tracing_subscriber::EnvFilter;

/// Shows warnings, or what `HALTER_LOG` asks for (`debug`, `halter_core=trace`, …).
pub fn start() -> anyhow::Result<()> {
    let filter = match std::env::var("HALTER_LOG") {
        Ok(directives) if !directives.is_empty() => EnvFilter::try_new(&directives)
            .with_context(|| format!("`HALTER_LOG={directives}` is not a log filter"))?,
        _ => EnvFilter::new("warn"),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .without_time()
        .init();
    Ok(())
}
