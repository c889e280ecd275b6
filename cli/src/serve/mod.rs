//! `halter serve`: an OpenAI-compatible server.

mod ask;
mod fault;
mod fields;
mod reply;
mod routes;
mod worker;

use std::future::{Future, IntoFuture};
use std::net::{IpAddr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use axum::serve::ListenerExt;
use halter_core::train::interrupt::Interrupt;
use halter_core::{Error, ErrorKind};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::answering::ModelArgs;
use crate::{Context, interrupt, progress};
use routes::App;

/// How often the server looks whether it is to end.
const LOOK: Duration = Duration::from_millis(50);
/// Time to send what is left once everything was broken off.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Serve a model to OpenAI's clients
///
/// /v1/models, /v1/chat/completions and /v1/completions, on this machine alone unless --host says
/// otherwise. Ctrl-C ends it when the answers under way are given.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Address to listen on; 0.0.0.0 is every one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    host: IpAddr,
    /// Port to listen on (0: one that is free)
    #[arg(long, value_name = "N", default_value_t = 8000)]
    port: u16,
    /// Key that clients must send as `Authorization: Bearer KEY`
    #[arg(long, value_name = "KEY", env = "HALTER_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// The model's name to clients (default: as --model has it)
    #[arg(long, value_name = "NAME")]
    model_name: Option<String>,
    /// Requests that are taken on at once, waiting or not; more are told to come again (429)
    #[arg(long, value_name = "N", default_value_t = 256,
          value_parser = clap::value_parser!(u16).range(1..))]
    max_requests: u16,
    /// Most bytes of a request
    #[arg(long, value_name = "BYTES", default_value_t = 4 << 20)]
    max_request_bytes: usize,
    /// Tokens of a chat completion whose request does not say (default: what the context leaves)
    #[arg(long, value_name = "N")]
    max_new_tokens: Option<usize>,
    /// Seconds that answers under way may take when the server ends
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    shutdown_seconds: u64,
    #[command(flatten)]
    model: ModelArgs,
}

/// Runs the subcommand.
pub fn run(args: &Args, context: &Context) -> anyhow::Result<()> {
    let mut progress = progress::to_stderr();
    if args.api_key.as_deref() == Some("") {
        return Err(Error::config("`api-key` is empty: expected a key").into());
    }
    if args.max_new_tokens == Some(0) {
        return Err(Error::config("`max-new-tokens` is `0`: expected at least 1").into());
    }
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.context("cannot start the server's threads")?;
    let address = SocketAddr::new(args.host, args.port);
    // Before the model is read: an address that is taken is told at once.
    let listener = runtime.block_on(TcpListener::bind(address)).map_err(|error| {
        Error::new(ErrorKind::Network, format!("cannot listen on `{address}`"))
            .because(error)
            .hint("choose another with `--port`; 0 takes one that is free")
    })?;
    let address = listener.local_addr()?;
    let generator = Arc::new(args.model.open(None)?);
    let options = args.model.engine(&generator, None);
    let name = args.model_name.clone().unwrap_or_else(|| generator.name.clone());
    let (tasks, received) = mpsc::channel();
    let app = Arc::new(App {
        fingerprint: generator.fingerprint()?,
        generator: Arc::clone(&generator),
        options,
        model: name.clone(),
        created: routes::now(),
        max_new_tokens: args.max_new_tokens,
        key: args.api_key.as_ref().map(|key| blake3::hash(key.as_bytes())),
        tasks,
        places: Arc::new(Semaphore::new(args.max_requests.into())),
    });
    let interrupt = interrupt::on_ctrl_c()?;
    let abort = Arc::new(AtomicBool::new(false));
    let worker = std::thread::Builder::new().name("engine".into()).spawn({
        let abort = Arc::clone(&abort);
        move || {
            let work = || worker::work(&generator, options, &received, &abort);
            let outcome = catch_unwind(AssertUnwindSafe(work));
            // Without it there is nothing to serve.
            abort.store(true, Ordering::SeqCst);
            outcome
        }
    })?;
    if !args.host.is_loopback() && args.api_key.is_none() {
        progress.note("anybody who reaches this machine may use the server: there is no --api-key");
    }
    progress.note(&format!("serving {name} on http://{address}/v1"));
    context.print_json(&json!({ "model": name, "base_url": format!("http://{address}/v1") }))?;
    let limit = Duration::from_secs(args.shutdown_seconds);
    let served = runtime.block_on(async {
        let router = routes::router(app, args.max_request_bytes);
        let listener = listener.tap_io(|stream| {
            // Tokens are small; without it they would wait for one another.
            let _ = stream.set_nodelay(true);
        });
        let server = axum::serve(listener, router)
            .with_graceful_shutdown(ended(interrupt.clone(), Arc::clone(&abort)));
        finish(server.into_future(), &interrupt, &abort, limit).await
    });
    abort.store(true, Ordering::SeqCst);
    runtime.shutdown_timeout(LAST_WORDS);
    served.context("the server failed")?;
    if !matches!(worker.join(), Ok(Ok(()))) {
        return Err(anyhow!("the thread of the model failed; please report what it said above"));
    }
    progress.note("ended");
    Ok(())
}

/// Comes when the server is to end.
async fn ended(interrupt: Interrupt, abort: Arc<AtomicBool>) {
    while !interrupt.is_set() && !abort.load(Ordering::SeqCst) {
        tokio::time::sleep(LOOK).await;
    }
}

/// Waits for the server, which ends when its answers are given; `limit` after it was asked to, they
/// are broken off.
async fn finish(
    server: impl Future<Output = std::io::Result<()>>,
    interrupt: &Interrupt,
    abort: &Arc<AtomicBool>,
    limit: Duration,
) -> std::io::Result<()> {
    let mut server = pin!(server);
    let late = async {
        ended(interrupt.clone(), Arc::clone(abort)).await;
        tokio::time::sleep(limit).await;
    };
    tokio::select! {
        outcome = &mut server => return outcome,
        () = late => {}
    }
    abort.store(true, Ordering::SeqCst);
    // Who does not read what was sent is left.
    tokio::time::timeout(LAST_WORDS, server).await.unwrap_or(Ok(()))
}
