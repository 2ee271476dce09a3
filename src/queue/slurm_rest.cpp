#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>

#include "base/concat.h"
#include "base/error.h"
#include "queue/slurm_client.h"

namespace moebius::queue {
namespace {

using Json = nlohmann::json;

constexpr int kNewestKnown = 44;  // v0.0.44
// Slurm's own errors about a job (slurm_errno.h: 2000 to 2999); others are of the connection or the daemon.
constexpr int kFirstJobError = 2000, kLastJobError = 2999;
constexpr int kNoSuchJob = 2017, kAlreadyDone = 2021;

int number_of_version(const std::string& version) {
  const size_t dot = version.rfind('.');
  return dot == std::string::npos ? 0 : std::atoi(version.c_str() + dot + 1);
}

// "pending" and so on: a string, or since v0.0.40 a list of a state and its flags.
std::string state_of(const Json& job) {
  const auto found = job.find("job_state");
  if (found == job.end()) return {};
  if (found->is_string()) return found->get<std::string>();
  if (!found->is_array() || found->empty() || !found->front().is_string()) return {};
  for (const Json& each : *found) {
    if (each == "COMPLETING") return "COMPLETING";
  }
  return found->front().get<std::string>();
}

std::string text_in(const Json& json, const char* key) {
  const auto found = json.find(key);
  return found != json.end() && found->is_string() ? found->get<std::string>() : std::string();
}

// What slurmrestd says went wrong, and its number; empty when nothing did.
struct Fault {
  std::string text;
  int number = 0;
};
Fault fault_in(const Json& reply) {
  const auto errors = reply.find("errors");
  if (errors == reply.end() || !errors->is_array() || errors->empty()) return {};
  const Json& first = errors->front();
  Fault fault{text_in(first, "error"), 0};
  if (const std::string more = text_in(first, "description"); !more.empty())
    fault.text += (fault.text.empty() ? "" : ": ") + more;
  for (const char* key : {"error_number", "error_code"}) {
    if (const auto number = first.find(key); number != first.end() && number->is_number_integer())
      fault.number = number->get<int>();
  }
  if (fault.text.empty()) fault.text = concat("error ", fault.number);
  return fault;
}

// Secrets of this program do not go along; sbatch sends the whole environment too.
bool goes_along(std::string_view variable) {
  for (const char* secret :
       {"SLURM_JWT=", "ELECTRICITYMAPS_TOKEN=", "WATTTIME_USER=", "WATTTIME_PASSWORD="}) {
    if (variable.starts_with(secret)) return false;
  }
  return variable.find('=') != std::string_view::npos;
}

class SlurmRest final : public SlurmClient {
 public:
  SlurmRest(SlurmRestOptions options, std::shared_ptr<HttpClient> http)
      : options_(std::move(options)), http_(std::move(http)), version_(options_.version) {
    if (options_.url.starts_with("unix:")) {
      socket_ = options_.url.substr(5);
      base_ = "http://localhost";
    } else if (options_.url.starts_with("http://") || options_.url.starts_with("https://")) {
      base_ = options_.url;
      while (base_.ends_with('/')) base_.pop_back();
    } else {
      throw_user_error("--slurm-rest ", options_.url,
                       " is no address; give http://HOST:PORT or unix:/path/to/socket");
    }
    if (!version_.empty() && (!version_.starts_with("v0.0.") || number_of_version(version_) < 36))
      throw_user_error("--slurm-rest-version ", version_,
                       " is none of slurmrestd's; name one such as v0.0.38");
    for (const std::string& argument : options_.arguments) properties_.push_back(property(argument));
  }

  Result<void> reach() override {
    const Result<Json> reply = ask_for("GET", "/ping");
    if (!reply) return reply.error();
    const auto pings = reply->find("pings");
    if (pings != reply->end() && pings->is_array()) {
      for (const Json& each : *pings) {
        // "ping", later "pinged", later "responding".
        if (text_in(each, "ping") == "UP" || text_in(each, "pinged") == "UP" ||
            each.value("responding", false))
          return {};
      }
    }
    return make_error(ErrorKind::kUnavailable, "Slurm's controller is out of reach of slurmrestd at ",
                      options_.url);
  }

  Result<std::vector<SlurmJob>> list() override {
    const Result<Json> reply = ask_for("GET", "/jobs");
    if (!reply) return reply.error();
    const auto jobs = reply->find("jobs");
    if (jobs == reply->end() || !jobs->is_array()) return strange("a list of jobs");
    std::vector<SlurmJob> list;
    for (const Json& each : *jobs) {
      const auto id = each.find("job_id");
      if (id == each.end() || !id->is_number_integer()) return strange("a list of jobs");
      const std::string user = text_in(each, "user_name");
      if (!user.empty() && !options_.user.empty() && user != options_.user) continue;
      list.push_back({std::to_string(id->get<int64_t>()), text_in(each, "name"), state_of(each)});
    }
    return list;
  }

  Result<std::string> submit(const SlurmSubmission& submission) override {
    if (const Result<void> known = find_version(); !known) return known.error();
    const int version = number_of_version(version_);
    Json job = {{"name", submission.name},
                {"tasks", 1},
                {"requeue", false},
                {"standard_output", submission.log},
                {"current_working_directory", submission.folder}};
    job["open_mode"] = version >= 40 ? Json::array({"APPEND"}) : Json("append");
    if (submission.per_worker != "gpus") {
      job["cpus_per_task"] = submission.places;
    } else if (version >= 39) {
      job["tres_per_job"] = concat("gres/gpu:", submission.places);
    } else {
      job["gpus"] = std::to_string(submission.places);
    }
    Json& environment = job["environment"] = version >= 39 ? Json::array() : Json::object();
    for (char** at = ::environ; at != nullptr && *at != nullptr; ++at) {
      const std::string variable = *at;
      if (!goes_along(variable)) continue;
      const size_t sign = variable.find('=');
      if (version >= 39) {
        environment.push_back(variable);
      } else {
        environment[variable.substr(0, sign)] = variable.substr(sign + 1);
      }
    }
    for (const auto& [name, value] : properties_) job[name] = value;
    Json body = {{"job", std::move(job)}};
    (version >= 41 ? body["job"] : body)["script"] = submission.script;
    const Result<Json> reply =
        ask_for("POST", "/job/submit", body.dump(-1, ' ', false, Json::error_handler_t::replace));
    if (!reply) return reply.error();
    const auto id = reply->find("job_id");
    // A warning (resources that are not there yet) comes as an error beside the number of the job.
    if (id != reply->end() && id->is_number_integer() && id->get<int64_t>() > 0)
      return std::to_string(id->get<int64_t>());
    return strange("the number of a job");
  }

  // SIGURG, since slurmrestd signals all processes of a job, not the batch script alone, and this is one that
  // processes ignore unless they ask for it.
  Result<void> ask(const std::string& id) override { return end("/job/" + id + "?signal=URG"); }

  Result<void> cancel(const std::string& id, bool if_pending) override {
    if (if_pending) {
      // Held, it cannot begin between the look and the end.
      if (const Result<void> held = hold(id, true); !held) return held;
      const Result<Json> reply = ask_for("GET", "/job/" + id);
      if (!reply) return reply.error();
      const auto jobs = reply->find("jobs");
      if (jobs == reply->end() || !jobs->is_array() || jobs->empty()) return {};
      if (state_of(jobs->front()) != "PENDING") return {};
    }
    return end("/job/" + id);
  }

  Result<void> hold(const std::string& id, bool held) override {
    const Result<Json> reply = ask_for("POST", "/job/" + id, Json{{"hold", held}}.dump());
    return reply || is_over() ? Result<void>() : reply.error();
  }

 private:
  std::pair<std::string, std::string> property(const std::string& argument) const {
    const size_t begin = argument.find_first_not_of('-'), sign = argument.find('=');
    if (begin == std::string::npos || sign == std::string::npos || sign <= begin)
      throw_user_error("--slurm-arg ", argument,
                       ": over REST it must be NAME=VALUE, such as --partition=gpu");
    std::string name = argument.substr(begin, sign - begin);
    std::replace(name.begin(), name.end(), '-', '_');
    if (name == "time") name = "time_limit";
    if (name == "constraint") name = "constraints";
    if (name == "mem") name = "memory_per_node";
    return {name, argument.substr(sign + 1)};
  }

  // Whatever is meant to work by the name of `what` did not come; a daemon of another kind answers.
  Error strange(const char* what) const {
    return make_error(ErrorKind::kUnavailable, "slurmrestd at ", options_.url, " (", version_,
                      ") answered without ", what);
  }
  // A job that has ended meanwhile needs no more.
  bool is_over() const { return fault_ == kNoSuchJob || fault_ == kAlreadyDone; }
  Result<void> end(const std::string& path) {
    const Result<Json> reply = ask_for("DELETE", path);
    return reply || is_over() ? Result<void>() : reply.error();
  }

  Result<std::vector<std::string>> headers() const {
    std::vector<std::string> headers = {"Accept: application/json", "Content-Type: application/json",
                                        "Expect:"};  // no 100-continue
    std::string token;
    if (!options_.token_file.empty()) {
      std::ifstream in(options_.token_file);
      if (!(in >> token))
        return make_error(ErrorKind::kUnavailable, "--slurm-token-file ", options_.token_file,
                          " cannot be read or is empty; write `scontrol token` to it");
    } else if (const char* variable = std::getenv("SLURM_JWT"); variable != nullptr) {
      token = variable;
    }
    if (token.starts_with("SLURM_JWT=")) token.erase(0, 10);  // as scontrol prints it
    if (token.empty()) return headers;
    if (!options_.user.empty()) headers.push_back("X-SLURM-USER-NAME: " + options_.user);
    headers.push_back("X-SLURM-USER-TOKEN: " + token);
    return headers;
  }

  Result<HttpReply> send(const std::string& method, const std::string& path, const std::string& body) {
    auto lines = headers();
    if (!lines) return lines.error();
    Result<HttpReply> reply = http_->send({method, base_ + path, *lines, body, socket_});
    if (!reply)
      return make_error(ErrorKind::kUnavailable, "slurmrestd at ", options_.url,
                        " is out of reach: ", reply.error().message);
    if (reply->status == 401 || reply->status == 403)
      return make_error(ErrorKind::kUnavailable, "slurmrestd at ", options_.url, " refuses the token (",
                        reply->status,
                        "); make one with `scontrol token`, for $SLURM_JWT or --slurm-token-file");
    return reply;
  }

  // The highest version that the daemon and this program know, from the daemon's description of itself.
  Result<void> find_version() {
    if (!version_.empty()) return {};
    const Result<HttpReply> reply = send("GET", "/openapi/v3", "");
    if (!reply) return reply.error();
    const Json description = Json::parse(reply->body, nullptr, /*allow_exceptions=*/false);
    int best = 0;
    std::string found;
    if (const auto paths = description.is_object() ? description.find("paths") : description.end();
        description.is_object() && paths != description.end() && paths->is_object()) {
      for (const auto& [path, methods] : paths->items()) {
        const std::string_view text = path;
        if (!text.starts_with("/slurm/v0.0.") || (!text.ends_with("/ping") && !text.ends_with("/ping/")))
          continue;
        const std::string version(text.substr(7, text.find('/', 7) - 7));
        found += (found.empty() ? "" : ", ") + version;
        if (const int number = number_of_version(version); number > best && number <= kNewestKnown) {
          best = number;
          version_ = version;
        }
      }
    }
    if (best > 0) return {};
    return make_error(ErrorKind::kUnavailable, "slurmrestd at ", options_.url, " offers ",
                      found.empty() ? "no version of its interface" : found, " (status ", reply->status,
                      "); this program knows v0.0.36 to v0.0.", kNewestKnown,
                      ", name one with --slurm-rest-version");
  }

  // The reply to a request of the interface, when it is not an error.
  Result<Json> ask_for(const std::string& method, const std::string& path, const std::string& body = "") {
    fault_ = 0;
    if (const Result<void> known = find_version(); !known) return known.error();
    const Result<HttpReply> reply = send(method, "/slurm/" + version_ + path, body);
    if (!reply) return reply.error();
    if (reply->status == 404 && !reply->body.starts_with('{'))
      return make_error(ErrorKind::kUnavailable, "slurmrestd at ", options_.url, " has no interface ",
                        version_, "; leave --slurm-rest-version out to take one that it has");
    Json json = Json::parse(reply->body, nullptr, /*allow_exceptions=*/false);
    if (!json.is_object())
      return make_error(ErrorKind::kUnavailable, "slurmrestd at ", options_.url, " answered ", reply->status,
                        " with something that is not JSON");
    if (reply->status < 300) return json;
    const Fault fault = fault_in(json);
    fault_ = fault.number;
    const bool refused = fault.number >= kFirstJobError && fault.number <= kLastJobError;
    return make_error(refused ? ErrorKind::kInvalid : ErrorKind::kUnavailable,
                      refused ? "Slurm refuses: " : "slurmrestd cannot serve: ", method, " ", path, ": ",
                      fault.text.empty() ? concat("status ", reply->status) : fault.text);
  }

  SlurmRestOptions options_;
  std::shared_ptr<HttpClient> http_;
  std::string base_, socket_, version_;
  int fault_ = 0;  // number of the last reply's error
  std::vector<std::pair<std::string, std::string>> properties_;
};

}  // namespace

std::unique_ptr<SlurmClient> make_slurm_rest(SlurmRestOptions options, std::shared_ptr<HttpClient> http) {
  return std::make_unique<SlurmRest>(std::move(options), std::move(http));
}

}  // namespace moebius::queue
