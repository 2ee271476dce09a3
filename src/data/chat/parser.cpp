#include <charconv>
#include <optional>
#include <set>

#include "base/error.h"
#include "data/chat/lexer.h"
#include "data/chat/syntax.h"

namespace moebius::data::chat {

void Location::fail(const std::string& reason) const {
  throw_user_error(*where, ", line ", line, ": ", reason);
}

namespace {

constexpr int kMaxDepth = 100;
constexpr int kMaxParts = 2000;  // of one tag: they are walked by recursion

using Kind = Expression::Kind;

// The expressions of one tag.
class ExpressionParser {
 public:
  ExpressionParser(const std::vector<Token>& tokens, const std::string& where)
      : tokens_(tokens), where_(where) {}

  const Token& peek() const { return tokens_[at_]; }
  const Token& take() { return tokens_[at_ + 1 < tokens_.size() ? at_++ : at_]; }
  bool at_end() const { return peek().kind == Token::Kind::kEnd; }
  bool is_operator(const char* text) const {
    return peek().kind == Token::Kind::kOperator && peek().text == text;
  }
  bool is_word(const char* text) const { return peek().kind == Token::Kind::kName && peek().text == text; }
  bool take_operator(const char* text) { return is_operator(text) && (take(), true); }
  bool take_word(const char* text) { return is_word(text) && (take(), true); }

  [[noreturn]] void fail(const std::string& reason) const { Location{&where_, peek().line}.fail(reason); }
  void expect(const char* text) {
    if (!take_operator(text)) fail(concat("expected '", text, "', found ", found()));
  }
  std::string expect_name() {
    if (peek().kind != Token::Kind::kName) fail("expected a name, found " + found());
    return take().text;
  }
  void expect_end() {
    if (!at_end()) fail("did not expect " + found());
  }
  std::string found() const { return at_end() ? "the end of the tag" : "'" + peek().text + "'"; }

  // What may stand alone in a tag: a condition, or several with commas as a list.
  ExpressionPtr tuple() {
    ExpressionPtr first = expression();
    if (!is_operator(",")) return first;
    ExpressionPtr list = make(Kind::kTuple);
    list->operands.push_back(std::move(first));
    while (take_operator(",") && !at_end()) list->operands.push_back(expression());
    return list;
  }

  ExpressionPtr expression() {
    const Depth depth(*this);
    ExpressionPtr value = either();
    while (take_word("if")) {
      ExpressionPtr condition = make(Kind::kCondition);
      condition->operands.push_back(either());
      condition->operands.push_back(std::move(value));
      condition->operands.push_back(take_word("else") ? expression() : nullptr);
      value = std::move(condition);
    }
    return value;
  }

  // Without the condition, so that the `if` of a for stays: {% for x in items if x.y %}.
  ExpressionPtr either() {
    ExpressionPtr left = both();
    while (take_word("or")) left = binary(std::move(left), "or", both());
    return left;
  }

 private:
  struct Depth {
    explicit Depth(ExpressionParser& parser) : parser(parser) {
      if (++parser.depth_ > kMaxDepth) parser.fail("expressions are nested too deep");
    }
    ~Depth() { --parser.depth_; }
    ExpressionParser& parser;
  };

  ExpressionPtr make(Kind kind) {
    if (++count_ > kMaxParts) fail("an expression has more than 2000 parts");
    auto made = std::make_unique<Expression>();
    made->kind = kind;
    made->line = peek().line;
    return made;
  }
  ExpressionPtr binary(ExpressionPtr left, std::string name, ExpressionPtr right) {
    ExpressionPtr made = make(Kind::kBinary);
    made->name = std::move(name);
    made->operands.push_back(std::move(left));
    made->operands.push_back(std::move(right));
    return made;
  }

  ExpressionPtr both() {
    ExpressionPtr left = negation();
    while (take_word("and")) left = binary(std::move(left), "and", negation());
    return left;
  }

  ExpressionPtr negation() {
    const Depth depth(*this);
    if (!is_word("not")) return comparison();
    ExpressionPtr made = make(Kind::kUnary);
    made->name = take().text;
    made->operands.push_back(negation());
    return made;
  }

  // a < b < c is (a < b) and (b < c); the middle is walked twice, which no template can tell.
  ExpressionPtr comparison() {
    const size_t begin = at_;
    ExpressionPtr left = sum();
    ExpressionPtr all;
    size_t last = begin;
    for (;;) {
      std::string name;
      if (peek().kind == Token::Kind::kOperator &&
          std::set<std::string>{"==", "!=", "<", ">", "<=", ">="}.contains(peek().text)) {
        name = take().text;
      } else if (take_word("in")) {
        name = "in";
      } else if (is_word("not") && at_ + 1 < tokens_.size() && tokens_[at_ + 1].text == "in") {
        take();
        take();
        name = "not in";
      } else {
        return all ? std::move(all) : std::move(left);
      }
      const size_t right_begin = at_;
      ExpressionPtr right = sum();
      if (!left) left = again(last);
      ExpressionPtr one = binary(std::move(left), name, std::move(right));
      left = nullptr;
      last = right_begin;
      all = all ? binary(std::move(all), "and", std::move(one)) : std::move(one);
    }
  }
  ExpressionPtr again(size_t begin) {
    const size_t end = at_;
    at_ = begin;
    ExpressionPtr value = sum();
    at_ = end;
    return value;
  }

  ExpressionPtr sum() {
    ExpressionPtr left = concatenation();
    while (is_operator("+") || is_operator("-")) {
      const std::string name = take().text;
      left = binary(std::move(left), name, concatenation());
    }
    return left;
  }

  ExpressionPtr concatenation() {
    ExpressionPtr left = product();
    while (take_operator("~")) left = binary(std::move(left), "~", product());
    return left;
  }

  ExpressionPtr product() {
    ExpressionPtr left = power();
    while (is_operator("*") || is_operator("/") || is_operator("//") || is_operator("%")) {
      const std::string name = take().text;
      left = binary(std::move(left), name, power());
    }
    return left;
  }

  ExpressionPtr power() {
    ExpressionPtr left = unary(true);
    while (take_operator("**")) left = binary(std::move(left), "**", unary(true));
    return left;
  }

  ExpressionPtr unary(bool with_filters) {
    const Depth depth(*this);
    ExpressionPtr value;
    if (is_operator("-") || is_operator("+")) {
      value = make(Kind::kUnary);
      value->name = take().text;
      value->operands.push_back(unary(false));
    } else {
      value = primary();
    }
    value = postfix(std::move(value));
    return with_filters ? filters(std::move(value)) : std::move(value);
  }

  ExpressionPtr constant(Value value) {
    ExpressionPtr made = make(Kind::kConstant);
    made->value = std::move(value);
    return made;
  }

  ExpressionPtr primary() {
    const Token token = peek();
    switch (token.kind) {
      case Token::Kind::kString: {
        std::string text = take().text;
        while (peek().kind == Token::Kind::kString) text += take().text;
        return constant(std::move(text));
      }
      case Token::Kind::kInteger: {
        take();
        int64_t value = 0;
        const auto [end, error] =
            std::from_chars(token.text.data(), token.text.data() + token.text.size(), value);
        if (error != std::errc()) fail("the number " + token.text + " is too large");
        return constant(value);
      }
      case Token::Kind::kReal:
        return take(), constant(std::stod(token.text));
      case Token::Kind::kName:
        return name();
      case Token::Kind::kOperator:
        break;
      case Token::Kind::kEnd:
        fail("expected an expression, found the end of the tag");
    }
    if (take_operator("(")) {
      if (take_operator(")")) return make(Kind::kTuple);
      ExpressionPtr inner = expression();
      if (is_operator(",")) {
        ExpressionPtr list = make(Kind::kTuple);
        list->operands.push_back(std::move(inner));
        while (take_operator(",") && !is_operator(")")) list->operands.push_back(expression());
        inner = std::move(list);
      }
      expect(")");
      return inner;
    }
    if (take_operator("[")) {
      ExpressionPtr list = make(Kind::kList);
      while (!is_operator("]")) {
        list->operands.push_back(expression());
        if (!take_operator(",")) break;
      }
      expect("]");
      return list;
    }
    if (take_operator("{")) {
      ExpressionPtr dict = make(Kind::kDict);
      while (!is_operator("}")) {
        dict->operands.push_back(expression());
        expect(":");
        dict->operands.push_back(expression());
        if (!take_operator(",")) break;
      }
      expect("}");
      return dict;
    }
    fail("did not expect " + found());
  }

  ExpressionPtr name() {
    ExpressionPtr made = make(Kind::kName);
    made->name = take().text;
    if (made->name == "true" || made->name == "True") return constant(true);
    if (made->name == "false" || made->name == "False") return constant(false);
    if (made->name == "none" || made->name == "None") return constant(Value::none());
    return made;
  }

  ExpressionPtr postfix(ExpressionPtr value) {
    for (;;) {
      ExpressionPtr made = make(Kind::kAttribute);
      if (take_operator(".")) {
        made->operands.push_back(std::move(value));
        if (peek().kind == Token::Kind::kInteger) {
          made->kind = Kind::kItem;
          made->operands.push_back(primary());
        } else {
          made->name = expect_name();
        }
      } else if (take_operator("[")) {
        made->operands.push_back(std::move(value));
        subscript(*made);
      } else if (take_operator("(")) {
        made->kind = Kind::kCall;
        made->operands.push_back(std::move(value));
        arguments(*made);
      } else {
        return value;
      }
      value = std::move(made);
    }
  }

  void subscript(Expression& made) {
    made.kind = Kind::kItem;
    const auto bound = [&] {
      made.operands.push_back(is_operator(":") || is_operator("]") ? nullptr : expression());
    };
    bound();
    while (made.operands.size() < 4 && take_operator(":")) {
      made.kind = Kind::kSlice;
      bound();
    }
    if (made.kind == Kind::kSlice) {
      made.operands.resize(4);
    } else if (!made.operands[1]) {
      fail("expected an index, found " + found());
    }
    expect("]");
  }

  // After the opening parenthesis.
  void arguments(Expression& made) {
    while (!is_operator(")")) {
      if (peek().kind == Token::Kind::kName && at_ + 1 < tokens_.size() &&
          tokens_[at_ + 1].kind == Token::Kind::kOperator && tokens_[at_ + 1].text == "=") {
        std::string name = take().text;
        take();
        made.named.emplace_back(std::move(name), expression());
      } else {
        if (!made.named.empty()) fail("an argument without a name follows one with a name");
        made.operands.push_back(expression());
      }
      if (!take_operator(",")) break;
    }
    expect(")");
  }

  ExpressionPtr filters(ExpressionPtr value) {
    for (;;) {
      ExpressionPtr made = make(Kind::kFilter);
      if (take_operator("|")) {
        made->name = expect_name();
        made->operands.push_back(std::move(value));
        if (take_operator("(")) arguments(*made);
      } else if (take_word("is")) {
        made->kind = Kind::kTest;
        made->negative = take_word("not");
        made->name = expect_name();
        made->operands.push_back(std::move(value));
        test_arguments(*made);
      } else if (is_operator("(") || is_operator("[") || is_operator(".")) {
        value = postfix(std::move(value));
        continue;
      } else {
        return value;
      }
      value = std::move(made);
    }
  }

  // `x is divisibleby 3` and `x is divisibleby(3)`.
  void test_arguments(Expression& made) {
    if (take_operator("(")) return arguments(made);
    const Token& next = peek();
    const bool value =
        next.kind == Token::Kind::kString || next.kind == Token::Kind::kInteger ||
        next.kind == Token::Kind::kReal || is_operator("[") ||
        (next.kind == Token::Kind::kName &&
         !std::set<std::string>{"and", "or", "else", "if", "in", "is", "not"}.contains(next.text));
    if (value) made.operands.push_back(postfix(primary()));
  }

  const std::vector<Token>& tokens_;
  const std::string& where_;
  size_t at_ = 0;
  int depth_ = 0, count_ = 0;
};

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
    if (depth > kMaxDepth) fail(segments_[at_].line, "blocks are nested too deep");
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
