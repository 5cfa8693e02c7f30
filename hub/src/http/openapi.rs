//! The document that describes the API: made from the handlers, served at `/v1/openapi.json`.

use utoipa::OpenApi;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::{ContentBuilder, Ref, ResponseBuilder};

use super::{
    assignments, episodes, error, evictions, metrics, noted, releases, robots, runs, snapshots, status, upload_policies,
};

const TOKEN_SCHEME: &str = "admin-token";

/// Adds what all operations have in common: the token, and how failures look.
struct Common;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "zunft-hub",
        description = "Everything that people and programs can ask of a hub. Lists are paged: pass next_cursor as \
            cursor until there is none. Every failure has the shape of ApiError."
    ),
    paths(
        status::status, status::events, metrics::metrics,
        robots::list, robots::show, robots::add, robots::fleet, evictions::list,
        upload_policies::show, upload_policies::set, upload_policies::clear,
        upload_policies::show_of_robot, upload_policies::set_of_robot, upload_policies::clear_of_robot,
        episodes::list, episodes::show, episodes::manifest, episodes::summary, episodes::upload_chunk, episodes::download_chunk, episodes::import,
        noted::list, noted::request,
        snapshots::create, snapshots::list, snapshots::show, snapshots::download,
        runs::start, runs::list, runs::show, runs::metrics, runs::stop, runs::resume,
        releases::skills, releases::list, releases::show, releases::upload_blob, releases::download_blob, releases::publish, releases::verify,
        assignments::assign, assignments::list,
    ),
    components(schemas(error::ApiError, error::ErrorCode)),
    tags(
        (name = "hub", description = "The hub itself"),
        (name = "robots", description = "Who records and acts"),
        (name = "episodes", description = "What robots lived through"),
        (name = "snapshots", description = "Frozen lists of episodes"),
        (name = "runs", description = "Training"),
        (name = "skills", description = "Skills and their signed releases"),
        (name = "assignments", description = "Which robot shall run what"),
    ),
    modifiers(&Common),
)]
pub(super) struct Document;

impl utoipa::Modify for Common {
    fn modify(&self, document: &mut utoipa::openapi::OpenApi) {
        let components = document.components.get_or_insert_default();
        let token = HttpBuilder::new()
            .scheme(HttpAuthScheme::Bearer)
            .description(Some("The content of pki/admin.token in the hub's data directory"))
            .build();
        components.add_security_scheme(TOKEN_SCHEME, SecurityScheme::Http(token));
        let requirement = utoipa::openapi::security::SecurityRequirement::new(TOKEN_SCHEME, [] as [&str; 0]);
        document.security = Some(vec![requirement]);
        for item in document.paths.paths.values_mut() {
            for operation in [&mut item.get, &mut item.post, &mut item.put, &mut item.delete].into_iter().flatten() {
                for (status, description) in [
                    ("400", "The request cannot be understood; `field` names the part"),
                    ("401", "No token, or a wrong one; the message tells where the token lies"),
                    ("500", "The hub failed; its log says why"),
                ] {
                    let content = ContentBuilder::new().schema(Some(Ref::from_schema_name("ApiError"))).build();
                    let response = ResponseBuilder::new().description(description);
                    let response = response.content("application/json", content).build();
                    operation.responses.responses.insert(status.to_owned(), response.into());
                }
            }
        }
    }
}
