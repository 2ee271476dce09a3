// Slurm over REST, against a server on loopback that answers as slurmrestd 22.05.8 (v0.0.38) was recorded to,
// and, for later versions, as their description says. A real slurmrestd: tests/slurm_test.cpp.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/file.h"
#include "base/replay_server.h"
#include "base/test_folder.h"
#include "queue/slurm_engine.h"

namespace moebius::queue {
namespace {

using Kind = RunStatus::Kind;
using testing::HasSubstr;
using testing::StartsWith;

// Jobs as a test sets them, told as slurmrestd tells them.
class RestSlurm {
 public:
  struct Entry {
    int id;
    std::string name, state, user = "ada";
  };
  ReplayAnswer operator()(const std::string& request) {
    const std::string path = "/slurm/" + version;
    const auto asks = [&](const std::string& what) { return request.starts_with(what); };
    if (request.find("X-SLURM-USER-TOKEN: " + token) == std::string::npos)
      return {401, "Authentication failure", ""};
    if (asks("GET /openapi/v3 ")) {
      return {200,
              R"({"openapi":"3.0.3","paths":{"\/slurm\/v0.0.36\/ping":{},"\/slurm\/)" + version +
                  R"(\/ping":{},"\/slurm\/)" + version + R"(\/jobs":{},"\/slurm\/v0.0.99\/ping":{}}})",
              ""};
    }
    if (asks("GET " + path + "/ping "))
      return {200, R"({"errors":[],"pings":[{"hostname":"vm","ping":"UP","status":0,"mode":"primary"}]})",
              ""};
    if (gone) {
      return {500,
              R"({"errors":[{"description":"Failed while looking for jobs","error_number":-1,)"
              R"("error":"Unspecified error","source":"slurm_load_jobs"}],"jobs":[]})",
              ""};
    }
    if (asks("POST " + path + "/job/submit ")) {
      const auto body = nlohmann::json::parse(request.substr(request.find("\r\n\r\n") + 4));
      submitted.push_back(body);
      if (!refusal.empty()) return {500, refusal, ""};
      jobs.push_back({100 + static_cast<int>(jobs.size()), body["job"]["name"], "PENDING"});
      return {200,
              R"({"errors":[],"job_id":)" + std::to_string(jobs.back().id) +
                  R"(,"step_id":"BATCH","job_submit_user_msg":""})",
              ""};
    }
    if (asks("GET " + path + "/jobs ") || asks("GET " + path + "/job/")) {
      nlohmann::json list = nlohmann::json::array();
      for (const Entry& each : jobs) {
        nlohmann::json state = each.state;
        if (version != "v0.0.38") state = {each.state};
        list.push_back(
            {{"job_id", each.id}, {"name", each.name}, {"job_state", state}, {"user_name", each.user}});
      }
      return {200, nlohmann::json{{"errors", nlohmann::json::array()}, {"jobs", list}}.dump(), ""};
    }
    if (asks("DELETE " + path + "/job/999")) {
      return {500, R"({"errors":[{"error":"Invalid job id specified","error_number":2017}]})", ""};
    }
    if (asks("DELETE ") || asks("POST " + path + "/job/")) return {200, R"({"errors":[]})", ""};
    return {404, "Unable find requested URL. Please view /openapi/v3 for API reference.", ""};
  }
  std::string version = "v0.0.38", token = "t0ken", refusal;
  std::vector<Entry> jobs;
  std::vector<nlohmann::json> submitted;
  bool gone = false;
};

class SlurmRestTest : public testing::Test {
 protected:
  void SetUp() override { write_file_atomic(folder / "token", "SLURM_JWT=t0ken\n"); }
  std::unique_ptr<SlurmClient> client(std::string version = "") {
    return make_slurm_rest({.url = server.url(),
                            .token_file = (folder / "token").string(),
                            .user = "ada",
                            .version = std::move(version),
                            .arguments = {"--partition=gpu", "--time=90", "qos=low"}},
                           make_curl_client(5));
  }
  SlurmEngine engine() {
    return {folder.path(), {.queue_name = "q", .per_worker = "gpus", .status_every_s = 0}, client()};
  }
  Launch launch(int64_t attempt = 1) {
    return {.job = 7,
            .attempt = attempt,
            .workers = 4,
            .width = 2,
            .name = "n",
            .command = {"train"},
            .folder = "/data"};
  }
  std::string last_request() { return server.requests().back(); }

  TestFolder folder;
  RestSlurm slurm;
  ReplayServer server{[this](const std::string& request) { return slurm(request); }};
};

TEST_F(SlurmRestTest, submits_once_and_follows_the_job) {
  ::setenv("ELECTRICITYMAPS_TOKEN", "secret", 1);
  SlurmEngine e = engine();
  ASSERT_TRUE(e.reach()) << e.reach().error().message;
  ASSERT_TRUE(e.start(launch()));
  ASSERT_TRUE(engine().start(launch()));  // another process, after a kill
  ASSERT_EQ(slurm.submitted.size(), 1U);
  const nlohmann::json& job = slurm.submitted[0]["job"];
  EXPECT_EQ(job["name"], "moebius-q-7-1");
  EXPECT_EQ(job["gpus"], "8");
  EXPECT_EQ(job["requeue"], false);
  EXPECT_EQ(job["partition"], "gpu");
  EXPECT_EQ(job["time_limit"], "90");
  EXPECT_EQ(job["qos"], "low");
  EXPECT_EQ(job["open_mode"], "append");
  EXPECT_EQ(job["environment"]["PATH"], std::getenv("PATH"));
  EXPECT_FALSE(job["environment"].contains("ELECTRICITYMAPS_TOKEN"));
  EXPECT_EQ(slurm.submitted[0]["script"], read_file(folder / "jobs/7/script.1"));
  EXPECT_EQ(e.status(7, 1)->kind, Kind::pending);
  slurm.jobs[0].state = "RUNNING";
  EXPECT_EQ(e.status(7, 1)->kind, Kind::running);
  EXPECT_THAT(e.start(launch(2)).error().message, HasSubstr("Slurm job 100, still lives"));
  slurm.jobs[0].user = "eve";  // another user's of the same name is not ours
  EXPECT_EQ(e.status(7, 1)->kind, Kind::none);
  ::unsetenv("ELECTRICITYMAPS_TOKEN");
}

TEST_F(SlurmRestTest, asks_with_a_signal_that_other_processes_ignore_and_ends) {
  SlurmEngine e = engine();
  ASSERT_TRUE(e.start(launch()));
  ASSERT_TRUE(e.stop(7, 1, false));  // pending: held first, so that it cannot begin meanwhile
  const auto requests = server.requests();
  EXPECT_THAT(requests[requests.size() - 3], StartsWith("POST /slurm/v0.0.38/job/100 "));
  EXPECT_THAT(requests[requests.size() - 3], HasSubstr(R"({"hold":true})"));
  EXPECT_THAT(last_request(), StartsWith("DELETE /slurm/v0.0.38/job/100 "));
  slurm.jobs[0].state = "RUNNING";
  ASSERT_TRUE(e.stop(7, 1, false));
  EXPECT_THAT(last_request(), StartsWith("DELETE /slurm/v0.0.38/job/100?signal=URG "));
  ASSERT_TRUE(e.stop(7, 1, true));
  EXPECT_THAT(last_request(), StartsWith("DELETE /slurm/v0.0.38/job/100 "));
  ASSERT_TRUE(e.hold(7, 1, false));
  EXPECT_THAT(last_request(), HasSubstr(R"({"hold":false})"));
  EXPECT_TRUE(client()->ask("999"));  // gone meanwhile: there is nobody to ask
}

TEST_F(SlurmRestTest, later_versions_are_spoken_as_they_are_described) {
  slurm.version = "v0.0.41";
  SlurmEngine e = engine();
  ASSERT_TRUE(e.start(launch()));
  const nlohmann::json& job = slurm.submitted[0]["job"];
  EXPECT_EQ(job["tres_per_job"], "gres/gpu:8");
  EXPECT_EQ(job["open_mode"], nlohmann::json({"APPEND"}));
  EXPECT_TRUE(job["environment"].is_array());
  EXPECT_THAT(job["script"].get<std::string>(), StartsWith("#!/bin/bash"));
  slurm.jobs[0].state = "RUNNING";
  EXPECT_EQ(e.status(7, 1)->kind, Kind::running);
}

TEST_F(SlurmRestTest, out_of_reach_refused_and_forbidden_are_told_apart) {
  SlurmEngine e = engine();
  ASSERT_TRUE(e.start(launch()));
  slurm.gone = true;
  EXPECT_EQ(e.status(7, 1).error().kind, ErrorKind::kUnavailable);
  EXPECT_THAT(e.status(7, 1).error().message, HasSubstr("Failed while looking for jobs"));
  slurm.gone = false;
  slurm.jobs.clear();
  slurm.refusal = R"({"errors":[{"error_code":2000,"error":"Invalid partition name specified"}]})";
  const auto refused = e.start(launch(2));
  EXPECT_EQ(refused.error().kind, ErrorKind::kInvalid);
  EXPECT_THAT(refused.error().message, HasSubstr("Slurm refuses: POST /job/submit: Invalid partition name"));
  write_file_atomic(folder / "token", "stale\n");  // read anew for each request
  EXPECT_EQ(e.status(7, 1).error().kind, ErrorKind::kUnavailable);
  EXPECT_THAT(e.status(7, 1).error().message,
              HasSubstr("refuses the token (401); make one with `scontrol token`"));
  write_file_atomic(folder / "token", "t0ken\n");
  EXPECT_TRUE(e.status(7, 1));
  EXPECT_THAT(client("v0.0.42")->reach().error().message, HasSubstr("has no interface v0.0.42"));
  const auto nobody = make_slurm_rest({.url = "http://127.0.0.1:9"}, make_curl_client(1));
  EXPECT_THAT(nobody->reach().error().message,
              StartsWith("slurmrestd at http://127.0.0.1:9 is out of reach"));
}

TEST_F(SlurmRestTest, what_cannot_be_meant_is_refused) {
  const auto refusal = [](SlurmRestOptions options) -> std::string {
    try {
      make_slurm_rest(std::move(options), make_curl_client(1));
    } catch (const UserError& error) {
      return error.what();
    }
    return {};
  };
  EXPECT_THAT(refusal({.url = "slurm.example"}), HasSubstr("--slurm-rest slurm.example is no address"));
  EXPECT_THAT(refusal({.url = "unix:/x", .version = "38"}), HasSubstr("name one such as v0.0.38"));
  EXPECT_THAT(refusal({.url = "unix:/x", .arguments = {"--exclusive"}}), HasSubstr("it must be NAME=VALUE"));
}

}  // namespace
}  // namespace moebius::queue
