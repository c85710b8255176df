package strict

import (
	"slices"
	"strings"

	"github.com/penstock-gateway/penstock/internal/suggest"
)

// Suggest is suggest.Name.
func Suggest(name string, names []string) string { return suggest.Name(name, names) }

// list renders choices for a message.
func list(names []string) string {
	const most = 24
	if len(names) > most {
		names = append(slices.Clone(names[:most]), "…")
	}
	return strings.Join(names, ", ")
}
