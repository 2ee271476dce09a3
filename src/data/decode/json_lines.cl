// The text field of JSON lines: one pass, one byte per turn of the loop, state in registers and one 64-byte
// buffer, so that a synthesis tool can make a pipeline of it that takes a byte per cycle. OpenCL C 1.2, one
// work-item; also compiled as C++ (decode/line_decoder.cpp).
//
// What is accepted is a subset of what the host's parser accepts, with the same text; every other line is left to
// the host: what is wrong, and what is right but rare (deeper than 64 levels, numbers of more than 18 digits or
// with large exponents, surrogates that are no pair, a field that is missing).

enum {  // status of a line
  LINE_BLANK = 0,
  LINE_TEXT = 1,
  LINE_FOR_HOST = 2
};

enum {
  AT_VALUE,         // a value must come
  AT_FIRST_ITEM,    // a value or ]
  AT_FIRST_KEY,     // a key or }
  AT_KEY,           // a key
  AT_COLON,         // :
  AFTER_VALUE,      // , or the end of the list or object
  IN_STRING,
  IN_ESCAPE,
  IN_HEX,           // of \u
  AT_LOW_ESCAPE,    // the backslash of a low surrogate
  AT_LOW_U,         // its u
  IN_UTF8,          // bytes that continue a character
  IN_WORD,          // true, false, null
  NUM_MINUS,
  NUM_ZERO,
  NUM_INT,
  NUM_DOT,
  NUM_FRACTION,
  NUM_E,
  NUM_E_SIGN,
  NUM_EXPONENT
};

// text: `size` bytes. field: the name, `field_size` <= 64 bytes. Out: the texts one after the other, at most `size`
// bytes; of each line the end of its text there and its status. Returns in totals the lines and the bytes out.
__kernel void decode_json_lines(__global const unsigned char* restrict text, const unsigned int size,
                                __global const unsigned char* restrict field, const unsigned int field_size,
                                __global unsigned char* restrict out, __global unsigned int* restrict line_end,
                                __global unsigned char* restrict status, __global unsigned int* restrict totals) {
  unsigned char name[64];  // on the chip
  for (unsigned int i = 0; i < 64; ++i) name[i] = i < field_size ? field[i] : 0;

  unsigned int line = 0, out_begin = 0, out_at = 0;
  int state = AT_VALUE, bad = 0, blank = 1, found = 0;
  int depth = 0;
  ulong objects = 0;                      // bit per level: an object, not a list
  int is_key = 0, capture = 0;            // of the string that is being read
  int match = 0;                          // a key at level 1: it is the field so far
  unsigned int match_at = 0;
  int field_next = 0;                     // the value to come is the field's
  unsigned int hex = 0, hex_left = 0, high = 0;
  unsigned int more = 0, low_bound = 0x80, high_bound = 0xBF;  // bytes of a character to come
  unsigned int word = 0, word_left = 0;   // what is left of a literal, 4 bytes
  unsigned int digits = 0, exponent_digits = 0;

  for (unsigned int i = 0; i <= size; ++i) {
    const int at_end = i == size;
    const unsigned int c = at_end ? '\n' : text[i];
    if (c == '\n') {
      if (at_end && (size == 0 || text[size - 1] == '\n')) break;  // no line behind the last line feed
      const int whole = !bad && depth == 0 && state == AFTER_VALUE;
      const int is_text = whole && found;
      if (!is_text) out_at = out_begin;
      status[line] = blank ? LINE_BLANK : is_text ? LINE_TEXT : LINE_FOR_HOST;
      line_end[line] = out_at;
      ++line;
      out_begin = out_at;
      state = AT_VALUE;
      bad = 0;
      blank = 1;
      found = 0;
      depth = 0;
      objects = 0;
      field_next = 0;
      capture = 0;
      more = 0;
      high = 0;
      continue;
    }
    const int space = c == ' ' || c == '\t' || c == '\r';
    if (!space) blank = 0;
    if (bad) continue;

    // A number ends with the first byte that is none of it, which is then looked at again as what follows.
    if (state >= NUM_MINUS) {
      const int digit = c >= '0' && c <= '9';
      int over = 0;
      if (state == NUM_MINUS) {
        if (!digit) bad = 1;
        state = c == '0' ? NUM_ZERO : NUM_INT;
      } else if (state == NUM_ZERO || state == NUM_INT) {
        if (digit && state == NUM_INT) {
        } else if (c == '.') {
          state = NUM_DOT;
        } else if (c == 'e' || c == 'E') {
          state = NUM_E;
        } else {
          over = 1;
        }
      } else if (state == NUM_DOT) {
        if (!digit) bad = 1;
        state = NUM_FRACTION;
      } else if (state == NUM_FRACTION) {
        if (c == 'e' || c == 'E') {
          state = NUM_E;
        } else if (!digit) {
          over = 1;
        }
      } else if (state == NUM_E || state == NUM_E_SIGN) {
        if (digit) {
          state = NUM_EXPONENT;
        } else if (state == NUM_E && (c == '+' || c == '-')) {
          state = NUM_E_SIGN;
        } else {
          bad = 1;
        }
      } else if (!digit) {
        over = 1;
      }
      if (!over) {
        if (digit && state != NUM_EXPONENT && ++digits > 18) bad = 1;
        if (digit && state == NUM_EXPONENT && ++exponent_digits > 2) bad = 1;
        continue;
      }
      state = AFTER_VALUE;
    }

    int emit = 0;            // bytes of a character that the string gets
    unsigned int symbol = 0;  // them, the first in the highest byte
    if (state == IN_STRING) {
      if (c == '"') {
        state = is_key ? AT_COLON : AFTER_VALUE;
        if (is_key) field_next = depth == 1 && match && match_at == field_size && !found;
        if (capture) found = 1;
        capture = 0;
      } else if (c == '\\') {
        state = IN_ESCAPE;
      } else if (c < 0x20) {
        bad = 1;
      } else {
        emit = 1;
        symbol = c << 24;
        if (c >= 0x80) {
          low_bound = c == 0xE0 ? 0xA0 : c == 0xF0 ? 0x90 : 0x80;
          high_bound = c == 0xED ? 0x9F : c == 0xF4 ? 0x8F : 0xBF;
          more = c >= 0xF0 ? 3 : c >= 0xE0 ? 2 : 1;
          if (c < 0xC2 || c > 0xF4) bad = 1;
          state = IN_UTF8;
        }
      }
    } else if (state == IN_UTF8) {
      if (c < low_bound || c > high_bound) bad = 1;
      low_bound = 0x80;
      high_bound = 0xBF;
      emit = 1;
      symbol = c << 24;
      if (--more == 0) state = IN_STRING;
    } else if (state == IN_ESCAPE) {
      if (c == 'u') {
        state = IN_HEX;
        hex = 0;
        hex_left = 4;
      } else {
        const unsigned int plain = c == 'n'    ? '\n'
                                   : c == 't'  ? '\t'
                                   : c == 'r'  ? '\r'
                                   : c == 'b'  ? '\b'
                                   : c == 'f'  ? '\f'
                                   : c == '"'  ? '"'
                                   : c == '\\' ? '\\'
                                   : c == '/'  ? '/'
                                               : 0;
        if (plain == 0) bad = 1;
        emit = 1;
        symbol = plain << 24;
        state = IN_STRING;
      }
    } else if (state == IN_HEX) {
      const unsigned int lower = c | 0x20;
      const int decimal = c >= '0' && c <= '9', letter = lower >= 'a' && lower <= 'f';
      if (!decimal && !letter) bad = 1;
      hex = (hex << 4) | (decimal ? c - '0' : lower - 'a' + 10);
      if (--hex_left == 0) {
        state = IN_STRING;
        if (high != 0) {
          if (hex < 0xDC00 || hex > 0xDFFF) bad = 1;
          const unsigned int character = 0x10000 + ((high - 0xD800) << 10) + (hex - 0xDC00);
          emit = 4;
          symbol = ((0xF0 | (character >> 18)) << 24) | ((0x80 | ((character >> 12) & 0x3F)) << 16) |
                   ((0x80 | ((character >> 6) & 0x3F)) << 8) | (0x80 | (character & 0x3F));
          high = 0;
        } else if (hex >= 0xD800 && hex <= 0xDBFF) {
          high = hex;
          state = AT_LOW_ESCAPE;
        } else if (hex >= 0xDC00 && hex <= 0xDFFF) {
          bad = 1;
        } else if (hex < 0x80) {
          emit = 1;
          symbol = hex << 24;
        } else if (hex < 0x800) {
          emit = 2;
          symbol = ((0xC0 | (hex >> 6)) << 24) | ((0x80 | (hex & 0x3F)) << 16);
        } else {
          emit = 3;
          symbol = ((0xE0 | (hex >> 12)) << 24) | ((0x80 | ((hex >> 6) & 0x3F)) << 16) | ((0x80 | (hex & 0x3F)) << 8);
        }
      }
    } else if (state == AT_LOW_ESCAPE) {
      if (c != '\\') bad = 1;
      state = AT_LOW_U;
    } else if (state == AT_LOW_U) {
      if (c != 'u') bad = 1;
      state = IN_HEX;
      hex = 0;
      hex_left = 4;
    } else if (state == IN_WORD) {
      if (c != (word & 0xFF)) bad = 1;
      word >>= 8;
      if (--word_left == 0) state = AFTER_VALUE;
    } else if (space) {
      // between tokens
    } else if (state == AFTER_VALUE) {
      const int in_object = depth > 0 && ((objects >> (depth - 1)) & 1);
      if (depth == 0) {
        bad = 1;
      } else if (c == ',') {
        state = in_object ? AT_KEY : AT_VALUE;
      } else if (c == (in_object ? '}' : ']')) {
        --depth;
      } else {
        bad = 1;
      }
    } else if (state == AT_COLON) {
      if (c != ':') bad = 1;
      state = AT_VALUE;
    } else if ((state == AT_FIRST_KEY && c == '}') || (state == AT_FIRST_ITEM && c == ']')) {
      --depth;
      state = AFTER_VALUE;
    } else if (state == AT_FIRST_KEY || state == AT_KEY) {
      if (c != '"') bad = 1;
      state = IN_STRING;
      is_key = 1;
      match = 1;
      match_at = 0;
    } else {  // a value begins
      const int wanted = field_next;
      field_next = 0;
      if (depth == 0 && c != '{') bad = 1;
      if (wanted && c != '"') bad = 1;
      if (c == '"') {
        state = IN_STRING;
        is_key = 0;
        capture = wanted;
      } else if (c == '{' || c == '[') {
        if (depth == 64) {
          bad = 1;
        } else {
          objects = c == '{' ? objects | ((ulong)1 << depth) : objects & ~((ulong)1 << depth);
          ++depth;
          state = c == '{' ? AT_FIRST_KEY : AT_FIRST_ITEM;
        }
      } else if (c == 't' || c == 'n' || c == 'f') {
        word = c == 't' ? 0x657572 : c == 'n' ? 0x6C6C75 : 0x65736C61;  // the letters that follow, the next one lowest
        word_left = c == 'f' ? 4 : 3;
        state = IN_WORD;
      } else if (c == '-' || (c >= '0' && c <= '9')) {
        state = c == '-' ? NUM_MINUS : c == '0' ? NUM_ZERO : NUM_INT;
        digits = c == '-' ? 0 : 1;
        exponent_digits = 0;
      } else {
        bad = 1;
      }
    }

    for (int k = 0; k < emit; ++k) {
      const unsigned char byte = (unsigned char)(symbol >> 24);
      symbol <<= 8;
      if (is_key) {
        match = match && match_at < field_size && name[match_at & 63] == byte;
        ++match_at;
      } else if (capture) {
        out[out_at++] = byte;
      }
    }
  }
  totals[0] = line;
  totals[1] = out_at;
}
