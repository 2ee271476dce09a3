#include "cli/data_command.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "cli/command_output.h"

namespace moebius::cli {
namespace {

class DataCommand : public testing::Test {
 protected:
  DataCommand() {
    std::string name = (std::filesystem::temp_directory_path() / "moebius-cli-XXXXXX").string();
    folder = ::mkdtemp(name.data());
    text = (folder / "text.txt").string();
    std::ofstream(text) << "one line\nanother line\n";
    prefix = (folder / "corpus").string();
  }
  ~DataCommand() override { std::filesystem::remove_all(folder); }

  // What `moebius data ARGUMENTS` prints on stdout; the text of a UserError after "error: ".
  std::string run(const std::string& arguments) { return output_of(add_data_command, "data " + arguments); }

  std::filesystem::path folder;
  std::string text, prefix;
};

TEST_F(DataCommand, build_makes_a_corpus_once) {
  EXPECT_EQ(run("build " + text + " --out " + prefix), prefix + ": 22 tokens, 1 document\n");
  EXPECT_EQ(run("build " + text + " --out " + prefix + ".idx"),
            "up to date: " + prefix + ": 22 tokens, 1 document\n");
  EXPECT_EQ(run("build " + text + " --per-line --out " + prefix),
            "error: " + prefix +
                ".idx exists already and was made from other text or with another tokenizer; give another "
                "--out, or "
                "--overwrite");
  EXPECT_EQ(run("build " + text + " --per-line --overwrite --out " + prefix),
            prefix + ": 20 tokens, 2 documents\n");
}

TEST_F(DataCommand, inspect_prints_verifies_and_decodes) {
  run("build " + text + " --per-line --out " + prefix);
  EXPECT_NE(run("inspect " + prefix).find("documents   2, of 8 to 12 tokens, mean 10\n"), std::string::npos);
  EXPECT_NE(run("inspect --verify " + prefix).find("checksums   verified\n"), std::string::npos);
  const auto json = nlohmann::json::parse(run("inspect --json " + prefix));
  EXPECT_EQ(json["num_tokens"], 20);
  EXPECT_EQ(json["token_type"], "uint16");
  EXPECT_EQ(json["tokenizer_fingerprint"], "bytes-1");
  EXPECT_EQ(run("inspect --document 1 " + prefix), "another line");
  EXPECT_EQ(run("inspect --document 2 " + prefix),
            "error: --document is 2, but the corpus has the documents 0 to 1");
  std::filesystem::remove(prefix + ".json");
  EXPECT_EQ(run("inspect --document 0 " + prefix), "111 110 101 32 108 105 110 101\n");
  EXPECT_EQ(run("inspect --document 0 --tokenizer bytes " + prefix), "one line");
  EXPECT_EQ(run("inspect " + (folder / "no").string()),
            "error: corpus " + (folder / "no.idx").string() +
                ": there is no such file; build the corpus first (moebius data build)");
}

TEST_F(DataCommand, a_trained_tokenizer_builds_a_corpus_that_names_it) {
  const std::string model = (folder / "t.model").string();
  EXPECT_EQ(run("tokenizer --train " + text + " --vocab 275 --out " + model).substr(0, model.size() + 12),
            model + ": 275 pieces");
  EXPECT_NE(run("build " + text + " --tokenizer " + model + " --out " + prefix).find(" tokens, 1 document\n"),
            std::string::npos);
  EXPECT_EQ(run("inspect --document 0 --tokenizer " + model + " " + prefix), "one line\nanother line\n");
  const std::string refused = run("inspect --document 0 --tokenizer bytes " + prefix);
  EXPECT_EQ(refused.substr(0, refused.find("xxh3")),
            "error: --tokenizer bytes is bytes-1, but the corpus was built with ");
}

TEST_F(DataCommand, a_tokenizer_json_builds_a_corpus_and_shows_its_tokens) {
  const char* root = std::getenv("MOEBIUS_SOURCE_DIR");
  const std::string model = std::string(root ? root : ".") + "/tests/data/tokenizers/qwen2.json";
  EXPECT_NE(run("build " + text + " --tokenizer " + model + " --out " + prefix).find(" tokens, 1 document\n"),
            std::string::npos);
  EXPECT_EQ(run("inspect --document 0 " + prefix + " --tokenizer " + model), "one line\nanother line\n");
  const std::string ids = run("encode --ids " + text + " --tokenizer " + model);
  const std::string tokens = run("encode --tokens " + text + " --tokenizer " + model);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), ' ') + 1, std::count(tokens.begin(), tokens.end(), '\n'));
  EXPECT_NE(tokens.find("\t\" l\"\n"), std::string::npos) << tokens;
  const auto json = nlohmann::json::parse(run("encode --json --repeats 1 " + text + " --tokenizer " + model));
  EXPECT_EQ(json["bytes"], 22);
  EXPECT_EQ(json["tokens"], std::count(tokens.begin(), tokens.end(), '\n'));
  EXPECT_TRUE(json.contains("megabytes_per_second"));
  EXPECT_EQ(run("encode no.txt").substr(0, 7), "error: ");
}

TEST_F(DataCommand, a_subcommand_and_its_arguments_are_required) {
  EXPECT_NE(run("").find("usage: "), std::string::npos);
  EXPECT_EQ(run("build --out x"), "usage: files is required");
  EXPECT_NE(run("tokenizer --train " + text + " --type words --out x").find("usage: --type: words not in"),
            std::string::npos);
}

}  // namespace
}  // namespace moebius::cli
