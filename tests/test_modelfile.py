"Ollama's Go template writes what the Jinja template writes."
import json, random, re, shutil, subprocess
import pytest
from codette_nb.core import CodetteError
from codette_nb.data.records import render_chat
from codette_nb.quantize.ollama import COMMANDS, OLLAMA_TEMPLATE, ROLES, go_template, read_modelfile, write_modelfile

CALC = {'name': 'calculate', 'description': 'Work out an expression.',
        'parameters': {'type': 'object', 'properties': {'expression': {'type': 'string'}, 'digits': {'type': 'integer'}}}}
CLOCK = {'name': 'clock', 'description': 'Tell the time.', 'parameters': {'type': 'object', 'properties': {}}}
USER = {'role': 'user', 'content': 'What is 17 * 23?'}
SYSTEM = {'role': 'system', 'content': 'Be brief.\nBe kind.'}
SUM = {'name': 'calculate', 'arguments': {'digits': 3, 'expression': '17 * 23'}}
CALL = {'role': 'assistant', 'content': '', 'tool_calls': [SUM]}
BOTH = {'role': 'assistant', 'content': 'Two at once.', 'tool_calls': [SUM, {'name': 'clock', 'arguments': {}}]}
RESULT = {'role': 'tool', 'content': '391'}
SAID = {'role': 'assistant', 'content': 'It is 391. <perspective> {"a": 1} "quoted" {{ braces }}'}
ODD = {'role': 'user', 'content': 'e\u0301 日本\n\n  \ttail  '}
CHATS = [([USER], ()), ([SYSTEM, USER], ()), ([USER, SAID, USER], ()), ([SYSTEM], ()), ([USER], (CALC,)),
         ([SYSTEM, USER], (CALC, CLOCK)), ([SYSTEM, USER, CALL, RESULT, SAID, USER], (CALC,)),
         ([USER, BOTH, RESULT, RESULT, SAID], (CALC, CLOCK)),
         ([USER, BOTH, RESULT, RESULT], (CALC, CLOCK)), ([USER, CALL, RESULT], ()), ([USER, SYSTEM, SAID], (CLOCK,)),
         ([{'role': 'user', 'content': ''}], ()), ([ODD], ())]

def go_data(messages, tools):
    "The chat as Ollama hands it to a template."
    def call(c): return {'Function': {'Name': c['name'], 'Arguments': c['arguments']}}
    def tool(t):
        properties = t['parameters']['properties']
        return {'Function': {'Name': t['name'], 'Description': t['description'], 'Parameters': {'Properties': properties}}}
    def turn(m): return {'Role': m['role'], 'Content': m['content'], 'ToolCalls': [call(c) for c in m.get('tool_calls', [])]}
    return {'Messages': [turn(m) for m in messages], 'Tools': [tool(t) for t in tools]}

# --- a reader for the part of Go's text/template that the template uses ---------------------------------------------

def parse(template):
    "Nested lists of ('text', s), ('do', words) and ('if' | 'range', words, body, else body)."
    parts = re.split(r'(\{\{.*?\}\})', template, flags=re.S)
    for i in range(1, len(parts), 2):
        if parts[i].startswith('{{- '): parts[i-1] = parts[i-1].rstrip()
        if parts[i].endswith(' -}}'): parts[i+1] = parts[i+1].lstrip()
    root = []; stack = [(None, root)]
    for i, p in enumerate(parts):
        if i % 2 == 0: stack[-1][1].append(('text', p)); continue
        words = re.findall(r'"[^"]*"|:=|[(),=]|[^\s(),=:]+', p[2:-2].removeprefix('- ').removesuffix(' -'))
        if words[0] in ('if', 'range'):
            node = (words[0], words[1:], [], [])
            stack[-1][1].append(node); stack.append((node, node[2]))
        elif words[0] == 'else': stack[-1] = (stack[-1][0], stack[-1][0][3])
        elif words[0] == 'end': stack.pop()
        else: stack[-1][1].append(('do', words))
    assert len(stack) == 1
    return root

def value(words, dot, env):
    "The value of a pipeline without pipes: a function with its arguments, or one operand."
    def operand():
        w = words.pop(0)
        if w == '(':
            depth = 1; inner = []
            while depth:
                x = words.pop(0); depth += (x == '(') - (x == ')'); inner.append(x)
            return value(inner[:-1], dot, env)
        if w[0] == '"': return w[1:-1]
        if w.isdigit(): return int(w)
        base, _, path = w.partition('.')
        x = env[base] if base else dot
        for k in filter(None, path.split('.')): x = x[k]
        return x
    words = list(words)
    if words[0] in ('and', 'not', 'eq', 'json'):
        f = words.pop(0); args = []
        while words: args.append(operand())
        if f == 'and': return next((a for a in args if not a), args[-1])
        if f == 'not': return not args[0]
        return args[0] == args[1] if f == 'eq' else json.dumps(args[0], ensure_ascii=False, separators=(',', ':'))
    return operand()

def run(nodes, dot, env, out):
    for node in nodes:
        if node[0] == 'text': out.append(node[1])
        elif node[0] == 'do':
            w = node[1]
            if len(w) > 1 and w[1] in (':=', '='):
                owner = env if w[1] == ':=' else next(m for m in env.maps if w[0] in m)
                owner[w[0]] = value(w[2:], dot, env)
            else: out.append(str(value(w, dot, env)))
        elif node[0] == 'if': run(node[2] if value(node[1], dot, env) else node[3], dot, env.new_child(), out)
        else:
            w = node[1]
            names = [w[0], w[2]] if ':=' in w else []
            over = value(w[w.index(':=')+1:] if names else w, dot, env)
            for k, v in sorted(over.items()) if isinstance(over, dict) else enumerate(over):
                run(node[2], v, env.new_child(dict(zip(names, (k, v)))), out)

def render_go(template, data):
    from collections import ChainMap
    out = []
    run(parse(template), data, ChainMap({'$': data}), out)
    return ''.join(out)

# --- the tests ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('messages, tools', CHATS)
def test_templates_agree(messages, tools):
    assert render_go(OLLAMA_TEMPLATE, go_data(messages, tools)) == render_chat(messages, tools, add_generation_prompt=True)

PLAIN = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
ASKING = "{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}" + PLAIN
DEFAULT = PLAIN.replace('{% for message in messages %}', "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\\nYou are brief.<|im_end|>\\n' }}{% endif %}")

@pytest.mark.parametrize('template', [PLAIN, ASKING, DEFAULT, PLAIN.replace('\\n', '\n')], ids=['plain', 'asking', 'default', 'line breaks'])
def test_templates_of_others_agree(template):
    "With a system message and without, in several turns; they know no tools, so none are shown to them."
    for messages, tools in CHATS:
        if not tools: assert render_go(go_template(template), go_data(messages, ())) == render_chat(messages, add_generation_prompt=True, template=template)
    assert '.Tools' not in go_template(template)

GO = '''package main
import ("encoding/json"; "os"; "text/template")
func main() {
  t, _ := os.ReadFile(os.Args[1]); d, _ := os.ReadFile(os.Args[2])
  f := template.FuncMap{"json": func(v any) string { b, _ := json.Marshal(v); return string(b) }}
  tmpl := template.Must(template.New("").Option("missingkey=zero").Funcs(f).Parse(string(t)))
  var chats []map[string]any
  if err := json.Unmarshal(d, &chats); err != nil { panic(err) }
  var out []string
  for _, c := range chats {
    w, _ := os.Create(os.Args[3])
    if err := tmpl.Execute(w, c); err != nil { panic(err) }
    w.Close()
    s, _ := os.ReadFile(os.Args[3])
    out = append(out, string(s))
  }
  b, _ := json.Marshal(out)
  os.Stdout.Write(b)
}'''

@pytest.mark.skipif(not shutil.which('go'), reason='needs Go, to run the template as Ollama does')
def test_templates_agree_in_go(tmp_path):
    (tmp_path/'main.go').write_text(GO, 'utf-8')
    (tmp_path/'template').write_text(OLLAMA_TEMPLATE, 'utf-8')
    (tmp_path/'chats.json').write_text(json.dumps([go_data(*c) for c in CHATS]))
    command = ['go', 'run', 'main.go', 'template', 'chats.json', 'out']
    p = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert p.returncode == 0, p.stderr
    assert json.loads(p.stdout) == [render_chat(m, t, add_generation_prompt=True) for m, t in CHATS]

def test_modelfile_carries_the_template(tmp_path):
    write_modelfile(tmp_path/'Modelfile', 'model.gguf')
    assert dict(read_modelfile(tmp_path/'Modelfile'))['template'] == OLLAMA_TEMPLATE

# --- Ollama's reader of Modelfiles: a machine that looks at one character after the other ---------------------------------

def ollama_reads(text):
    "Pairs as from `read_modelfile`, or None where Ollama refuses the text."
    def unquoted(s):
        for q in ('"""', '"'):
            if s.startswith(q): return s[len(q):-len(q)] if s.endswith(q) and len(s) >= 2*len(q) else None
        return s
    state, kept, name, out = 'between', '', '', []
    for c in text.removeprefix('\ufeff'):
        seen = c if c.isprintable() else ''
        if state == 'comment': state = 'between' if c in '\r\n' else state
        elif state == 'between':
            if c == '#': state = 'comment'
            elif c not in ' \t\r\n': state, kept = 'command', seen
        elif state == 'command':
            if c in ' \t':
                if (name := kept.lower()) not in COMMANDS: return None
                state, kept = {'parameter': 'name', 'message': 'role'}.get(name, 'value'), ''
            elif not (c.isascii() and c.isalpha()): return None
            else: kept += c
        elif state in ('name', 'role'):
            if c in ' \t':
                if state == 'role' and kept not in ROLES or not kept: return None # an empty name is refused later, as a parameter that is not known
                name, state, kept = kept if state == 'name' else f'message {kept}', 'value', ''
            elif not (c.isascii() and (c.isalnum() or c == '_')): return None
            else: kept += c
        elif c in '\r\n' and (value := unquoted(kept.strip())) is not None:
            out.append((name, value)); state, kept = 'between', ''
        else: kept += seen or c*(c in '\t\r\n')
    if state == 'value' and (value := unquoted(kept.strip())) is not None: out.append((name, value)); state = 'between'
    if state not in ('between', 'comment') or not any(k == 'from' for k, _ in out): return None
    return [(k.split()[0], f'{k.split()[1]}: {v}' if ' ' in k else v) for k, v in out]

PARTS = ['FROM', 'from', 'TEMPLATE', 'SYSTEM', 'PARAMETER', 'MESSAGE', 'LICENSE', '# c', '"', '"""', '""', '\n', '\r\n', '\r', '\t', ' ', '  ', 'x', './m.gguf', 'stop', '0.8', 'top-p', 'user',
         'system', 'role', 'é', '\xa0', '\u3000', '\u200b', '{{ .X }}', '\0', 'a b', '#', '"a"', '"""b\nc"""', 'FROM ./m.gguf\n', 'PARAMETER stop "x"\n', 'SYSTEM """a\r\nb"""\n', 'top_k', '\ufeff']

def test_modelfiles_are_read_as_ollama_reads_them(tmp_path):
    "Commands, quotes, line breaks and unprintable characters in any order."
    rng, path, taken = random.Random(0), tmp_path/'Modelfile', 0
    names = lambda text: re.search(r'(?i)parameter[ \t](model|from|system|user|assistant|template|license|parameter|message)[ \t]', text) # a parameter called like a command is refused here
    for _ in range(4000):
        text = 'FROM ./m.gguf\n'*(rng.random() < .6) + ''.join(rng.choice(PARTS) + ' '*rng.randrange(2) for _ in range(rng.randint(1, 9)))
        path.write_bytes(text.encode())
        try: mine = read_modelfile(path)
        except CodetteError: mine = None
        if not names(text): assert mine == ollama_reads(text), text
        taken += mine is not None
    assert taken > 300
