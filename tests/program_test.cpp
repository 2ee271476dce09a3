// What a user sees: exit codes, messages, files. Bad input ends with code 2, names the thing and the way out,
// and leaves nothing behind.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <thread>

#include "base/concat.h"
#include "tests/child_process.h"
#include "tests/tiny_config.h"

namespace moebius {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

class Program : public testing::Test {
 protected:
  Program() : config_(write_tiny_config(folder_, 6)), run_((folder_ / "run").string()) {}

  Finished train(std::vector<std::string> more = {}) const {
    std::vector<std::string> arguments{"train", config_, "--run", run_, "--device", "cpu", "--threads", "1"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run_program(arguments);
  }
  // Training with these arguments is refused with a message that holds `text`, and no run folder appears.
  void expect_refusal(const std::vector<std::string>& more, const std::vector<std::string>& texts) const {
    const Finished result = train(more);
    EXPECT_EQ(result.code, 2) << result.errors;
    for (const std::string& text : texts) EXPECT_THAT(result.errors, HasSubstr(text));
    EXPECT_FALSE(fs::exists(run_));
  }

  const TestFolder folder_;
  const std::string config_, run_;
};

TEST_F(Program, trains_evaluates_and_writes_text) {
  const Finished result = train({"--trace"});
  ASSERT_EQ(result.code, 0) << result.errors;
  EXPECT_THAT(result.output, HasSubstr("done: step 6, validation loss "));
  EXPECT_THAT(result.errors, HasSubstr("step 6/6   loss "));
  for (const char* file :
       {"config.toml", "metrics.jsonl", "summary.json", "trace.json", "checkpoints/step-000006"})
    EXPECT_TRUE(fs::exists(fs::path(run_) / file)) << file;

  const Finished evaluation = run_program({"eval", run_, "--json", "--device", "cpu"});
  ASSERT_EQ(evaluation.code, 0) << evaluation.errors;
  const auto summary = nlohmann::json::parse(read_file(fs::path(run_) / "summary.json"));
  EXPECT_EQ(nlohmann::json::parse(evaluation.output)["loss"], summary["validation_loss"]);

  const std::vector<std::string> generate{"generate", run_,       "--prompt", "the ",          "--tokens",
                                          "30",       "--device", "cpu",      "--temperature", "0"};
  const Finished cached = run_program(generate);
  ASSERT_EQ(cached.code, 0) << cached.errors;
  EXPECT_EQ(cached.output.rfind("the ", 0), 0u);
  std::vector<std::string> without = generate;
  without.emplace_back("--no-cache");
  EXPECT_EQ(run_program(without).output, cached.output);
}

TEST_F(Program, a_run_keeps_its_tokenizer_json_and_answers_in_its_chat_template) {
  const char* root = std::getenv("MOEBIUS_SOURCE_DIR");
  const fs::path folder = folder_ / "tokenizer";
  fs::create_directories(folder);
  fs::copy(fs::path(root ? root : ".") / "tests/data/tokenizers/qwen2.json", folder / "tokenizer.json");
  write_file_atomic(folder / "tokenizer_config.json", R"({"eos_token": "<|im_end|>"})");
  write_file_atomic(folder / "chat_template.jinja",
                    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
                    "{% if messages|length > 2 %}{{ raise_exception('too long') }}{% endif %}");
  const Finished trained = train({"--set", "data.tokenizer=" + (folder / "tokenizer.json").string()});
  ASSERT_EQ(trained.code, 0) << trained.errors;
  fs::remove_all(folder);
  const Finished evaluation = run_program({"eval", run_, "--device", "cpu"});
  EXPECT_EQ(evaluation.code, 0) << evaluation.errors;
  const std::vector<std::string> chat{"generate", run_, "--chat",   "owls?", "--system",      "Be brief.",
                                      "--tokens", "8",  "--device", "cpu",   "--temperature", "0"};
  const Finished answer = run_program(chat);
  ASSERT_EQ(answer.code, 0) << answer.errors;
  const Finished prompted =
      run_program({"generate", run_, "--prompt",
                   "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nowls?<|im_end|>\n", "--tokens",
                   "8", "--device", "cpu", "--temperature", "0"});
  EXPECT_TRUE(prompted.output.ends_with(answer.output)) << answer.output << " / " << prompted.output;
  fs::remove(fs::path(run_) / "chat_template.jinja");
  const Finished refused = run_program(chat);
  EXPECT_EQ(refused.code, 2);
  EXPECT_THAT(refused.errors, HasSubstr("--chat: " + run_ + " has no chat template"));
}

TEST_F(Program, the_run_of_a_second_call_needs_a_decision) {
  ASSERT_EQ(train().code, 0);
  const Finished again = train();
  EXPECT_EQ(again.code, 2);
  EXPECT_THAT(again.errors, HasSubstr("exists already; use --resume to go on, --overwrite to start anew"));
  EXPECT_EQ(train({"--overwrite"}).code, 0);
  EXPECT_EQ(train({"--resume", "--set", "train.steps=9"}).code, 0);
  const Finished both = train({"--resume", "--overwrite"});
  EXPECT_EQ(both.code, 2);
  const Finished other = train({"--resume", "--set", "train.steps=12", "--set", "model.dim=32"});
  EXPECT_EQ(other.code, 2);
  EXPECT_THAT(other.errors, HasSubstr("model.dim: 16 -> 32"));
}

TEST_F(Program, ctrl_c_saves_and_ends_well) {
  ChildProcess child({"train", config_, "--run", run_, "--device", "cpu", "--threads", "1", "--set",
                      "train.steps=1000000", "--set", "train.log_every=1000000"});
  const fs::path metrics = fs::path(run_) / "metrics.jsonl";
  while (!fs::exists(metrics) || fs::file_size(metrics) == 0)
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  child.signal(SIGINT);
  const Finished result = child.wait();
  EXPECT_EQ(result.code, 0) << result.errors;
  EXPECT_THAT(result.output, HasSubstr("interrupted after step "));
  EXPECT_THAT(result.output, HasSubstr("--resume"));
  EXPECT_TRUE(nlohmann::json::parse(read_file(fs::path(run_) / "summary.json"))["interrupted"].get<bool>());
}

TEST_F(Program, a_command_with_continue_may_be_started_until_it_is_done) {
  const std::vector<std::string> command{"train",     config_,
                                         "--run",     run_,
                                         "--device",  "cpu",
                                         "--threads", "1",
                                         "--set",     "train.steps=1000000",
                                         "--set",     "checkpoint.every=1000000",
                                         "--continue"};
  {
    ChildProcess child(command);
    const fs::path metrics = fs::path(run_) / "metrics.jsonl";
    while (!fs::exists(metrics) || fs::file_size(metrics) == 0)
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    child.signal(SIGTERM);
    const Finished stopped = child.wait();
    EXPECT_EQ(stopped.code, 75) << stopped.errors;  // not done: start me again
  }
  const auto summary = nlohmann::json::parse(read_file(fs::path(run_) / "summary.json"));
  const std::string steps = std::to_string(summary["steps"].get<int64_t>() + 2);
  const Finished done = train({"--set", "train.steps=" + steps, "--continue"});
  EXPECT_EQ(done.code, 0) << done.errors;
  EXPECT_THAT(done.output, HasSubstr("done: step " + steps));
  const Finished again = train({"--set", "train.steps=" + steps, "--continue"});
  EXPECT_EQ(again.code, 0) << again.errors;
  EXPECT_THAT(again.output, HasSubstr("done already: step " + steps));
}

TEST_F(Program, mistyped_fields_offer_the_nearest_name) {
  expect_refusal({"--set", "model.moe.topk=1"}, {"model.moe.topk", "model.moe.top_k"});
  expect_refusal({"--set", "train.stepz=1"}, {"train.stepz", "train.steps"});
  const Finished command = run_program({"tarin"});
  EXPECT_EQ(command.code, 2);
}

TEST_F(Program, values_out_of_range_are_named) {
  expect_refusal({"--set", "model.moe.top_k=9"}, {"model.moe.top_k is 9", "only 4 experts"});
  expect_refusal({"--set", "model.heads=3"}, {"model.dim is 16", "model.heads (3)"});
  expect_refusal({"--set", "train.precision=fp12"}, {"train.precision", "fp12", "bf16"});
  expect_refusal({"--set", "train.micro_batch=3"}, {"train.batch is 4"});
  expect_refusal({"--set", "model.vocab=100"}, {"model.vocab is 100"});
}

TEST_F(Program, bad_texts_are_named) {
  expect_refusal({"--set", "data.files=gone.txt"}, {"gone.txt"});
  write_file_atomic(folder_ / "empty.txt", "");
  expect_refusal({"--set", "data.files=" + (folder_ / "empty.txt").string()}, {"empty.txt", "empty"});
  write_file_atomic(folder_ / "latin.txt", "caf\xe9 au lait, longer than a line");
  expect_refusal({"--set", "data.files=" + (folder_ / "latin.txt").string()}, {"latin.txt", "UTF-8"});
  write_file_atomic(folder_ / "binary.txt", std::string("\0\1\2\3\0\0\0", 7));
  expect_refusal({"--set", "data.files=" + (folder_ / "binary.txt").string()}, {"binary.txt"});
  write_file_atomic(folder_ / "short.txt", "too short");
  expect_refusal({"--set", "data.files=" + (folder_ / "short.txt").string()},
                 {"short.txt", "train.sequence"});
}

TEST_F(Program, a_missing_gpu_is_said) {
  const Finished result = run_program({"train", config_, "--run", run_, "--device", "cuda"});
  if (result.code == 0) GTEST_SKIP() << "this machine has a GPU";
  EXPECT_EQ(result.code, 2);
  EXPECT_THAT(result.errors, HasSubstr("device 'cuda' was asked for, but "));
  EXPECT_THAT(result.errors, HasSubstr("--device cpu"));
  EXPECT_FALSE(fs::exists(run_));
}

TEST_F(Program, a_model_larger_than_the_memory_is_refused_with_its_plan) {
  expect_refusal({"--set", "model.dim=65536", "--set", "model.heads=64", "--set", "model.layers=100"},
                 {"weights", "optimizer.state_dtype"});
}

TEST_F(Program, a_port_in_use_is_named) {
  const int listener = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  ASSERT_EQ(bind(listener, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
  ASSERT_EQ(listen(listener, 1), 0);
  socklen_t length = sizeof address;
  getsockname(listener, reinterpret_cast<sockaddr*>(&address), &length);
  const std::string port = std::to_string(ntohs(address.sin_port));
  expect_refusal({"--metrics-port", port}, {port, "in use"});
  close(listener);
}

TEST_F(Program, damaged_checkpoints_are_refused_and_the_good_one_is_offered) {
  ASSERT_EQ(train().code, 0);  // checkpoints at steps 3 and 6
  const fs::path newest = fs::path(run_) / "checkpoints/step-000006";
  const fs::path shard = newest / "model-00001-of-00001.safetensors";
  fs::resize_file(shard, fs::file_size(shard) / 2);
  for (const std::vector<std::string>& command : {std::vector<std::string>{"eval", run_},
                                                  {"generate", run_},
                                                  {"train", config_, "--run", run_, "--resume"}}) {
    const Finished result = run_program(command);
    EXPECT_EQ(result.code, 2) << command[0];
    EXPECT_THAT(result.errors, HasSubstr("model-00001-of-00001.safetensors")) << command[0];
    EXPECT_THAT(result.errors, HasSubstr("step-000003")) << command[0];
  }
  EXPECT_EQ(
      run_program({"eval", (fs::path(run_) / "checkpoints/step-000003").string(), "--device", "cpu"}).code,
      0);
  const Finished none = run_program({"eval", (folder_ / "nowhere").string()});
  EXPECT_EQ(none.code, 2);
  EXPECT_THAT(none.errors, HasSubstr("nowhere"));
}

TEST_F(Program, prints_its_config_and_help) {
  const Finished full = run_program({"train", config_, "--dump-config", "full"});
  EXPECT_EQ(full.code, 0);
  EXPECT_THAT(full.output, HasSubstr("top_k = 2"));
  const Finished minimal =
      run_program({"train", config_, "--dump-config", "minimal", "--set", "train.steps=7"});
  EXPECT_THAT(minimal.output, HasSubstr("steps = 7"));
  EXPECT_EQ(run_program({"--help"}).code, 0);
  EXPECT_EQ(run_program({"train", "--help"}).code, 0);
  EXPECT_EQ(run_program({"train"}).code, 2);
}

TEST(Documentation, configuration_page_is_current) {
  const char* root = std::getenv("MOEBIUS_SOURCE_DIR");
  if (root == nullptr || !fs::exists(fs::path(root) / "docs/configuration.md"))
    GTEST_SKIP() << "no checkout here";
  EXPECT_EQ(run_program({"train", "--dump-config", "docs"}).output,
            read_file(fs::path(root) / "docs/configuration.md"))
      << "make it anew: moebius train --dump-config docs >docs/configuration.md";
}

}  // namespace
}  // namespace moebius
