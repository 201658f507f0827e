package config

import (
	"encoding"
	"errors"
	"fmt"
	"reflect"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// maxConfigBytes bounds what the YAML parser, which recurses and takes quadratic
// time on nested brackets, is made to read. A config is a few kilobytes.
const maxConfigBytes = 64 << 10

// decode fills c from YAML. The walk is our own, as it must know the line of
// every setting, report all that is wrong at once and refuse what it does not know.
func decode(data []byte, c *Config) error {
	src := c.src
	if len(data) > maxConfigBytes {
		return &Error{File: src.file, Msg: fmt.Sprintf("is larger than %s: this is not a replfs config", ByteSize(maxConfigBytes))}
	}
	file, err := parseYAML(data)
	if err != nil {
		return syntaxError(src.file, err)
	}
	d := &decoder{src: src}
	var body ast.Node
	for _, doc := range file.Docs {
		switch {
		case doc.Body == nil || doc.Body.Type() == ast.CommentType || doc.Body.Type() == ast.NullType:
		case body != nil:
			d.fail(doc.Body, "a second document begins here: a config is one document, remove the `---` line")
		default:
			body = doc.Body
		}
	}
	if body == nil {
		return &Error{File: src.file, Msg: "is empty: write a config with `replfs init`"}
	}
	d.value(body, reflect.ValueOf(c).Elem(), "")
	return src.err()
}

// parseYAML turns a parser's panic into an error: a config may hold anything.
func parseYAML(data []byte) (file *ast.File, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("not YAML that can be read: %v", p)
		}
	}()
	return parser.ParseBytes(data, 0)
}

func syntaxError(file string, err error) error {
	e := &Error{File: file, Msg: err.Error()}
	var ye yaml.Error
	if errors.As(err, &ye) {
		e.Msg = ye.GetMessage()
		if tk := ye.GetToken(); tk != nil && tk.Position != nil {
			e.Line = tk.Position.Line
		}
	}
	return e
}

type decoder struct{ src *source }

func (d *decoder) fail(n ast.Node, format string, args ...any) {
	d.src.report(&Error{File: d.src.file, Line: lineOf(n), Msg: fmt.Sprintf(format, args...)})
}

func lineOf(n ast.Node) int {
	if m, ok := n.(*ast.MappingValueNode); ok {
		n = m.Key
	}
	// A block mapping's own token is its first colon, on the first key's line.
	if tk := n.GetToken(); tk != nil && tk.Position != nil {
		return tk.Position.Line
	}
	return 0
}

// value decodes n into v; path names the setting.
func (d *decoder) value(n ast.Node, v reflect.Value, path string) {
	switch n.(type) {
	case *ast.AnchorNode, *ast.AliasNode, *ast.TagNode, *ast.DirectiveNode:
		d.fail(n, "%sYAML anchors, aliases and tags are not supported here: write the value itself", prefix(path))
		return
	}
	if v.Kind() == reflect.Pointer {
		if n.Type() == ast.NullType {
			return
		}
		v.Set(reflect.New(v.Type().Elem()))
		v = v.Elem()
	}
	if u, ok := v.Addr().Interface().(encoding.TextUnmarshaler); ok {
		if text, ok := d.text(n, path, "a value"); ok {
			if err := u.UnmarshalText([]byte(text)); err != nil {
				d.fail(n, "%s%v", prefix(path), err)
			}
		}
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		d.mapping(n, v, path)
	case reflect.Slice:
		d.sequence(n, v, path)
	case reflect.Bool:
		if b, ok := n.(*ast.BoolNode); ok {
			v.SetBool(b.Value)
		} else {
			d.fail(n, "%swant true or false", prefix(path))
		}
	case reflect.Int:
		text, ok := d.text(n, path, "a number")
		if !ok {
			return
		}
		i, err := strconv.Atoi(text)
		if err != nil {
			d.fail(n, "%s%q is not a whole number", prefix(path), text)
			return
		}
		v.SetInt(int64(i))
	case reflect.String:
		if _, isBool := n.(*ast.BoolNode); isBool {
			d.fail(n, "%swant text, not true or false: put it in quotes if you mean the word", prefix(path))
		} else if text, ok := d.text(n, path, "text"); ok {
			v.SetString(text)
		}
	default:
		panic("config: no decoder for " + v.Type().String()) // a field that the tests cover
	}
}

// text returns a scalar's text, for a number as it was written.
func (d *decoder) text(n ast.Node, path, want string) (string, bool) {
	switch n := n.(type) {
	case *ast.StringNode:
		return n.Value, true
	case *ast.LiteralNode:
		return n.Value.Value, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		return n.GetToken().Value, true
	case *ast.NullNode:
		d.fail(n, "%shas no value: give it one or remove the line", prefix(path))
	default:
		d.fail(n, "%swant %s here, not %s", prefix(path), want, kindOf(n))
	}
	return "", false
}

func (d *decoder) sequence(n ast.Node, v reflect.Value, path string) {
	if n.Type() == ast.NullType {
		return
	}
	seq, ok := n.(*ast.SequenceNode)
	if !ok {
		d.fail(n, "%swant a list (lines beginning with `- `), not %s", prefix(path), kindOf(n))
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), len(seq.Values), len(seq.Values)))
	for i, item := range seq.Values {
		p := fmt.Sprintf("%s[%d]", path, i)
		if item == nil || item.Type() == ast.NullType {
			at := n
			if i < len(seq.Entries) { // the null itself has no place in the file
				at = seq.Entries[i]
			}
			d.fail(at, "%sentry %d of the list is empty", prefix(path), i+1)
			continue
		}
		d.src.lines[p] = lineOf(item)
		d.value(item, v.Index(i), p)
	}
}

func (d *decoder) mapping(n ast.Node, v reflect.Value, path string) {
	fields, short := fieldsOf(v.Type())
	var values []*ast.MappingValueNode
	switch m := n.(type) {
	case *ast.NullNode:
		return
	case *ast.MappingNode:
		values = m.Values
	case *ast.MappingValueNode:
		values = []*ast.MappingValueNode{m}
	default:
		if _, scalar := n.(ast.ScalarNode); scalar && short >= 0 {
			d.value(n, v.Field(short), path)
			return
		}
		d.fail(n, "%swant `key: value` pairs here, not %s", prefix(path), kindOf(n))
		return
	}
	names := make([]string, 0, len(fields))
	for i := range v.NumField() {
		if name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("yaml"), ","); name != "" {
			names = append(names, name)
		}
	}
	seen := map[string]int{}
	for _, kv := range values {
		key, ok := kv.Key.(*ast.StringNode)
		if !ok {
			d.fail(kv.Key, "%s%q cannot be a key here: want one of %s", prefix(path), kv.Key.String(), strings.Join(names, ", "))
			continue
		}
		i, known := fields[key.Value]
		if !known {
			d.fail(key, "unknown key %q%s", key.Value, didYouMean(key.Value, names))
			continue
		}
		if first, twice := seen[key.Value]; twice {
			d.fail(key, "%skey %q stands twice, first in line %d: remove one", prefix(path), key.Value, first)
			continue
		}
		line := lineOf(key)
		seen[key.Value] = line
		p := strings.TrimPrefix(path+"."+key.Value, ".")
		if kv.Value == nil || kv.Value.Type() == ast.NullType {
			if k := v.Field(i).Kind(); k != reflect.Struct && k != reflect.Slice && k != reflect.Pointer {
				d.fail(key, "%shas no value: give it one or remove the line", prefix(p))
			}
			continue
		}
		d.src.lines[p] = line
		d.value(kv.Value, v.Field(i), p)
	}
}

// fieldsOf maps keys to fields, and finds the field that a bare scalar sets, or -1.
func fieldsOf(t reflect.Type) (fields map[string]int, short int) {
	fields, short = map[string]int{}, -1
	for i := range t.NumField() {
		name, opt, _ := strings.Cut(t.Field(i).Tag.Get("yaml"), ",")
		if name == "" {
			continue
		}
		fields[name] = i
		if opt == "short" {
			short = i
		}
	}
	return fields, short
}

func kindOf(n ast.Node) string {
	switch n.(type) {
	case *ast.MappingNode, *ast.MappingValueNode:
		return "`key: value` pairs"
	case *ast.SequenceNode:
		return "a list"
	case *ast.NullNode:
		return "nothing"
	default:
		return "a single value"
	}
}

func prefix(path string) string {
	if path == "" {
		return ""
	}
	return path + ": "
}
