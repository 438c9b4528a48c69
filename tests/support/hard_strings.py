"""Strings that tokenizers get wrong."""

from __future__ import annotations

HARD_STRINGS = (
    "", " ", "  ", "   ", "a", " a", "  a", "a ", "a  ", "\t", "\t\ta", "\n", "\n\n", "\n\n\n  x", " \n \n ", "\r\n", "a\r\nb\r\n\r\nc",
    "Hello, world!", "Hello  world   again    x", "don't DON'T we'll WE'LL I'm i'M 'S 's ’s",
    "0", "12", "123", "1234", "12345", "1234567890", "3.14159", "1,234,567.89", "x1y22z333", "  42", "a  1", "a   12 3", "²³½Ⅷ٣४",
    "🎉", "👩‍👩‍👧‍👦 family", "👍🏽👍🏿", "🇩🇪🇫🇷", "cafe\u0301 naïve e\u0301\u0323", "ÅΩK", "你好，世界。", "東京は日本の首都です", "한국어 텍스트",
    "مرحبا بالعالم", "שלום עולם", "हिन्दी में", "ภาษาไทย", "Straße ǅ ﬁ ſ 'ſ", "def f(x):\n    return x[1:]  # ok\n",
    "for (int i=0;i<n;++i){ a[i]*=2; }", "https://example.com/a?b=c&d=%20e", "<div class=\"x\">\n\t<p>&amp;</p>\n</div>",
    "\u00a0nbsp\u2003em\u200bzw\ufeffbom", "\x00\x01\x7f", "\u0085\u2028\u2029", "=" * 70, "a" * 60, " " * 40 + "x", "\n" * 20 + "y",
    "ab" * 30 + "  " + "-" * 33, "▁ ▁▁ a▁b", "<0x0A> <0x41>", "Ġ Ċ ĠHello", "[PAD600] [UNK] <unk>", "_\\u0041_ \\n {{x}} {% y %}",
    "!!!???...,,,;;;:::", "a.b,c;d:e!f?g", "MixedCASEWords andCamelCase", "\U0001f9d1\u200d\U0001f680\ufe0f \U0010ffff", "x\u0300\u0301\u0302\u0303y",
)  # fmt: skip
