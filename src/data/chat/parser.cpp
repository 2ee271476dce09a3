#include <set>

#include "base/error.h"
#include "data/chat/expression_parser.h"
#include "data/chat/lexer.h"
#include "data/chat/syntax.h"

namespace moebius::data::chat {

void Location::fail(const std::string& reason) const {
  throw_user_error(*where, ", line ", line, ": ", reason);
}

namespace {

constexpr int kMaxStatementDepth = 100;

class TemplateParser {
 public:
  TemplateParser(const std::string& source, const std::string& where)
      : segments_(cut_template(source, where)), where_(where) {}

  Block parse() {
    Block block = statements({}, 0);
    return block;
  }

 private:
  [[noreturn]] void fail(int line, const std::string& reason) const { Location{&where_, line}.fail(reason); }

  // The name that begins the statement segment i, or "".
  std::string keyword(size_t i) const {
    if (i >= segments_.size() || segments_[i].kind != Segment::Kind::kStatement) return "";
    const Token& first = segments_[i].tokens[0];
    if (first.kind != Token::Kind::kName) fail(first.line, "a {% tag begins with '" + first.text + "'");
    return first.text;
  }

  // Up to one of `ends`, which stays; to the end of the template where there are none.
  Block statements(const std::set<std::string>& ends, int depth) {
    if (depth > kMaxStatementDepth) fail(segments_[at_].line, "blocks are nested too deep");
    Block block;
    while (at_ < segments_.size()) {
      const Segment& segment = segments_[at_];
      if (segment.kind == Segment::Kind::kStatement && ends.contains(keyword(at_))) return block;
      Statement statement;
      statement.line = segment.line;
      if (segment.kind == Segment::Kind::kText) {
        statement.text = segment.text;
        ++at_;
      } else if (segment.kind == Segment::Kind::kOutput) {
        statement.kind = Statement::Kind::kOutput;
        ExpressionParser parser(segment.tokens, where_);
        statement.expressions.push_back(parser.tuple());
        parser.expect_end();
        ++at_;
      } else {
        read_statement(statement, depth + 1);
      }
      block.push_back(std::move(statement));
    }
    if (!ends.empty())
      fail(segments_.empty() ? 1 : segments_.back().line, "a block does not end with " + joined(ends));
    return block;
  }

  static std::string joined(const std::set<std::string>& names) {
    std::string text;
    for (const std::string& name : names) text += (text.empty() ? "{% " : " or {% ") + name + " %}";
    return text;
  }

  // `begin` is the line of the statement that `end` closes.
  void expect_end(const std::string& end, int begin) {
    if (keyword(at_) != end) fail(begin, "the block does not end with {% " + end + " %}");
    ++at_;
  }

  void read_statement(Statement& statement, int depth) {
    const std::string word = keyword(at_);
    const int line = statement.line;
    ExpressionParser parser(segments_[at_++].tokens, where_);
    parser.take();
    if (word == "if") {
      read_if(statement, parser, depth);
    } else if (word == "for") {
      read_for(statement, parser, depth);
    } else if (word == "set") {
      read_set(statement, parser, depth);
    } else if (word == "macro") {
      statement.kind = Statement::Kind::kMacro;
      statement.text = parser.expect_name();
      parser.expect("(");
      while (!parser.is_operator(")")) {
        Parameter parameter;
        parameter.name = parser.expect_name();
        if (parser.take_operator("=")) parameter.value = parser.expression();
        statement.parameters.push_back(std::move(parameter));
        if (!parser.take_operator(",")) break;
      }
      parser.expect(")");
      parser.expect_end();
      statement.blocks.push_back(statements({"endmacro"}, depth));
      expect_end("endmacro", line);
    } else if (word == "generation") {
      statement.kind = Statement::Kind::kBlock;
      statement.blocks.push_back(statements({"endgeneration"}, depth));
      expect_end("endgeneration", line);
    } else if (word == "break" || word == "continue") {
      statement.kind = word == "break" ? Statement::Kind::kBreak : Statement::Kind::kContinue;
      parser.expect_end();
    } else {
      fail(line, "{% " + word + " %} is not expected or not supported here");
    }
  }

  void read_if(Statement& statement, ExpressionParser& parser, int depth) {
    statement.kind = Statement::Kind::kIf;
    statement.expressions.push_back(parser.tuple());
    parser.expect_end();
    for (;;) {
      statement.blocks.push_back(statements({"elif", "else", "endif"}, depth));
      const std::string word = keyword(at_);
      ExpressionParser next(segments_[at_++].tokens, where_);
      next.take();
      if (word == "elif") {
        statement.expressions.push_back(next.tuple());
        next.expect_end();
        continue;
      }
      next.expect_end();
      if (word == "else") {
        statement.blocks.push_back(statements({"endif"}, depth));
        expect_end("endif", statement.line);
      }
      return;
    }
  }

  void read_for(Statement& statement, ExpressionParser& parser, int depth) {
    statement.kind = Statement::Kind::kFor;
    const bool parenthesis = parser.take_operator("(");
    do {
      statement.targets.push_back(parser.expect_name());
    } while (parser.take_operator(","));
    if (parenthesis) parser.expect(")");
    if (!parser.take_word("in")) parser.fail("expected 'in', found " + parser.found());
    statement.expressions.push_back(parser.either());
    statement.expressions.push_back(parser.take_word("if") ? parser.expression() : nullptr);
    if (parser.is_word("recursive")) parser.fail("recursive loops are not supported");
    parser.expect_end();
    statement.blocks.push_back(statements({"else", "endfor"}, depth));
    if (keyword(at_) == "else") {
      ++at_;
      statement.blocks.push_back(statements({"endfor"}, depth));
    }
    expect_end("endfor", statement.line);
  }

  void read_set(Statement& statement, ExpressionParser& parser, int depth) {
    do {
      std::string target = parser.expect_name();
      if (parser.take_operator(".")) target += "." + parser.expect_name();
      statement.targets.push_back(std::move(target));
    } while (parser.take_operator(","));
    if (parser.take_operator("=")) {
      statement.kind = Statement::Kind::kSet;
      statement.expressions.push_back(parser.tuple());
      return parser.expect_end();
    }
    parser.expect_end();
    statement.kind = Statement::Kind::kSetBlock;
    statement.blocks.push_back(statements({"endset"}, depth));
    expect_end("endset", statement.line);
  }

  std::vector<Segment> segments_;
  const std::string& where_;
  size_t at_ = 0;
};

}  // namespace

Block parse_template(const std::string& source, const std::string& where) {
  return TemplateParser(source, where).parse();
}

}  // namespace moebius::data::chat
