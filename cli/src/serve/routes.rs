//! The paths of the server, and a request's way through it.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, FromRequest, Path, Request, State};
use axum::http::{Method, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::stream;
use halter_core::generate::Generator;
use halter_core::generate::engine::EngineOptions;
use halter_core::generate::score::TokenScore;
use halter_core::generate::session::{Completion, Update};
use serde_json::{Value, json};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::ask::{Ask, Server};
use super::fault::Fault;
use super::reply::{Chunks, Reply};
use super::worker::{Answer, Task};

/// How long a request may take to come.
const BODY: Duration = Duration::from_secs(60);

/// What every request is given.
pub struct App {
    pub generator: Arc<Generator>,
    pub options: EngineOptions,
    /// The model's name to clients.
    pub model: String,
    pub fingerprint: String,
    pub created: u64,
    pub max_new_tokens: Option<usize>,
    /// Hashed, so that comparing takes the same time whatever is given.
    pub key: Option<blake3::Hash>,
    pub tasks: Sender<Task>,
    /// One for each request that may be under way.
    pub places: Arc<Semaphore>,
}

/// The server's paths; bodies have at most `max_bytes`.
pub fn router(app: Arc<App>, max_bytes: usize) -> Router {
    Router::new()
        .route("/v1/models", get(models))
        .route("/v1/models/{*name}", get(model))
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completions))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), authorize))
        .route("/health", get(|| async { "ok" }))
        .fallback(unknown_path)
        .method_not_allowed_fallback(unknown_method)
        .layer(DefaultBodyLimit::max(max_bytes))
        .with_state(app)
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

async fn unknown_path(uri: Uri) -> Fault {
    Fault::new(StatusCode::NOT_FOUND, format!("no path `{}`", uri.path()))
}

async fn unknown_method(method: Method, uri: Uri) -> Fault {
    let message = format!("`{method}` is not for `{}`", uri.path());
    Fault::new(StatusCode::METHOD_NOT_ALLOWED, message)
}

async fn authorize(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let given = request.headers().get(header::AUTHORIZATION);
    let given = given.and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    match (&app.key, given.map(blake3::hash)) {
        (Some(key), given) if given.as_ref() != Some(key) => {
            let message = "the key in `Authorization: Bearer …` is missing or wrong";
            Fault::new(StatusCode::UNAUTHORIZED, message).code("invalid_api_key").into_response()
        }
        _ => next.run(request).await,
    }
}

fn card(app: &App) -> Value {
    json!({
        "id": app.model, "object": "model", "created": app.created, "owned_by": "halter",
        "max_model_len": app.generator.context_len(),
    })
}

async fn models(State(app): State<Arc<App>>) -> Json<Value> {
    Json(json!({ "object": "list", "data": [card(&app)] }))
}

async fn model(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
) -> Result<Json<Value>, Fault> {
    if name == app.model {
        return Ok(Json(card(&app)));
    }
    let message = format!("the model `{name}` does not exist: expected `{}`", app.model);
    Err(Fault::new(StatusCode::NOT_FOUND, message).code("model_not_found"))
}

async fn chat(State(app): State<Arc<App>>, request: Request) -> Result<Response, Fault> {
    answer(app, request, |server, body| server.chat(body)).await
}

async fn completions(State(app): State<Arc<App>>, request: Request) -> Result<Response, Fault> {
    answer(app, request, |server, body| server.completions(body)).await
}

/// From a body to its answer. Dropped, it cancels what it asked for.
async fn answer(
    app: Arc<App>,
    request: Request,
    read: fn(&Server, &[u8]) -> Result<Ask, Fault>,
) -> Result<Response, Fault> {
    let headers = request.headers();
    // A page in a browser may send other types to any address without asking.
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    if !kind.is_some_and(|kind| kind.starts_with("application/json")) {
        let message = "expected the header `content-type: application/json`";
        return Err(Fault::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message));
    }
    // Before the body is read, which takes memory, until the answer has been sent, which does too.
    let place = Arc::clone(&app.places).try_acquire_owned().map_err(|_| {
        Fault::new(StatusCode::TOO_MANY_REQUESTS, "too many requests are under way")
    })?;
    let place = Arc::new(place);
    let body = body(request).await?;
    let shared = Arc::clone(&app);
    let read = tokio::task::spawn_blocking(move || {
        let server = Server {
            generator: &shared.generator,
            options: shared.options,
            model: &shared.model,
            max_new_tokens: shared.max_new_tokens,
        };
        read(&server, &body)
    });
    let broken = |_| Fault::new(StatusCode::INTERNAL_SERVER_ERROR, "the request was not read");
    let Ask { jobs, style } = read.await.map_err(broken)??;
    let prefix = if style.is_chat { "chatcmpl" } else { "cmpl" };
    let reply = Reply {
        generator: Arc::clone(&app.generator),
        id: format!("{prefix}-{:016x}", rand::random::<u64>()),
        created: now(),
        model: app.model.clone(),
        fingerprint: app.fingerprint.clone(),
        prompts: jobs.iter().map(|job| job.request.prompt.clone()).collect(),
        completions: jobs.first().map_or(1, |job| job.request.completions),
        style,
    };
    let score = reply.style.logprobs.filter(|_| reply.style.echo.is_some());
    let continued = jobs.iter().filter(|job| job.request.max_new_tokens > 0);
    let finishes: usize = continued.map(|job| job.request.completions).sum();
    let scored = if score.is_some() { jobs.len() } else { 0 };
    let scores = vec![Vec::new(); jobs.len()];
    let (answers, heard) = unbounded_channel();
    let _place = Arc::clone(&place);
    let heard = Answers { heard, left: finishes + scored, scores, _place };
    if app.tasks.send(Task { jobs, score, answers, place }).is_err() {
        return Err(Fault::shutting_down());
    }
    match reply.style.stream {
        true => Ok(streamed(reply, heard)),
        false => whole(&reply, heard).await,
    }
}

/// The whole body. Who is slow to send it leaves the place to others.
async fn body(request: Request) -> Result<Bytes, Fault> {
    let body = tokio::time::timeout(BODY, Bytes::from_request(request, &()));
    let late = |_| Fault::new(StatusCode::REQUEST_TIMEOUT, "the request did not come in time");
    body.await.map_err(late)?.map_err(|refused| Fault::new(refused.status(), refused.body_text()))
}

/// What the worker sends for one request.
struct Answers {
    heard: UnboundedReceiver<Answer>,
    /// Completions and scores that are still to come.
    left: usize,
    /// Scores of each prompt, where they were asked for.
    scores: Vec<Vec<TokenScore>>,
    /// What was sent and not yet read is held: the place is taken until then.
    _place: Arc<OwnedSemaphorePermit>,
}

impl Answers {
    /// The next token; `None` when all have come.
    async fn next(&mut self) -> Result<Option<(usize, Update)>, Fault> {
        while self.left > 0 {
            match self.heard.recv().await {
                Some(Answer::Update { prompt, update }) => {
                    self.left -= usize::from(update.event.finish.is_some());
                    return Ok(Some((prompt, update)));
                }
                Some(Answer::Scores { prompt, scores }) => {
                    self.scores[prompt] = scores;
                    self.left -= 1;
                }
                Some(Answer::Failed(fault)) => return Err(fault),
                None => return Err(Fault::shutting_down()),
            }
        }
        Ok(None)
    }
}

async fn whole(reply: &Reply, mut answers: Answers) -> Result<Response, Fault> {
    let mut completions = vec![Completion::default(); reply.choices()];
    while let Some((prompt, update)) = answers.next().await? {
        completions[prompt * reply.completions + update.event.completion].add(update);
    }
    Ok(Json(reply.whole(&completions, &answers.scores)).into_response())
}

/// A stream under way: events that wait to be sent, and where further ones come from.
struct Streamed {
    chunks: Chunks,
    answers: Answers,
    ready: VecDeque<Event>,
    ended: bool,
}

impl Streamed {
    async fn next(&mut self) -> Option<Event> {
        while self.ready.is_empty() && !self.ended {
            let chunks = match self.answers.next().await {
                Ok(Some((prompt, update))) => {
                    self.chunks.add(prompt, &update, &self.answers.scores)
                }
                Ok(None) => {
                    self.ended = true;
                    self.chunks.end(&self.answers.scores)
                }
                Err(fault) => {
                    self.ended = true;
                    vec![fault.body()]
                }
            };
            self.ready.extend(chunks.iter().map(|chunk| Event::default().data(chunk.to_string())));
            if self.ended {
                self.ready.push_back(Event::default().data("[DONE]"));
            }
        }
        self.ready.pop_front()
    }
}

fn streamed(reply: Reply, answers: Answers) -> Response {
    let state =
        Streamed { chunks: Chunks::new(reply), answers, ready: VecDeque::new(), ended: false };
    let events = stream::unfold(state, |mut state| async {
        let event = state.next().await?;
        Some((Ok::<Event, Infallible>(event), state))
    });
    Sse::new(events).keep_alive(KeepAlive::default()).into_response()
}
