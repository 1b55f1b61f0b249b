//! Files of a repository on a Hugging Face hub, at a commit.
//!
//! The hub's own client says where they are, and knows the token of whoever logged in. Their bytes come as
//! all others do: it trusts no certificates but its own list, does not bound what it is sent, and does not
//! notice a server that starts over.

use argus_models::registry::FilePin;
use hf_hub::{
    Cache, Repo, RepoType,
    api::sync::{ApiBuilder, ApiError},
};

use super::{
    FetchError, Place, Settings, Watch,
    download::{Remote, agent, download},
};

pub(super) fn fetch(
    repository: &str,
    revision: &str,
    wanted: &[&FilePin],
    place: &Place,
    settings: &Settings,
    watch: &mut dyn Watch,
) -> Result<(), FetchError> {
    let token = settings.token.clone().or_else(|| Cache::from_env().token());
    let api = ApiBuilder::new()
        .with_endpoint(settings.hub.clone())
        .with_cache_dir(place.partial.clone())
        .with_token(token.clone())
        .build()
        .map_err(failed)?;
    let repo = Repo::with_revision(repository.to_owned(), RepoType::Model, revision.to_owned());
    let files = api.repo(repo);
    let agent = agent();
    for pin in wanted {
        let name = pin.member.as_ref().unwrap_or(&pin.path);
        let url = files.url(name);
        // By its hash, so that what is half there is carried on with whatever else is wanted next time.
        let came = place.partial.join(pin.blake3.to_string());
        let remote = Remote { url: &url, name, token: token.as_deref() };
        match download(&agent, &remote, &came, pin.size, settings.retries, watch) {
            Err(FetchError::Status { status: 401 | 403, .. }) => {
                return Err(FetchError::Hub(format!(
                    "{url} wants a token: accept the model's terms on the hub, and set HF_TOKEN"
                )));
            }
            result => result?,
        }
        place.settle(&came, pin)?;
    }
    Ok(())
}

fn failed(error: ApiError) -> FetchError {
    FetchError::Hub(error.to_string())
}
