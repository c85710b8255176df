package contract

import (
	"regexp"

	pb "github.com/penstock-gateway/penstock/gen/penstock/v1"
)

// azureName is the name of a function, which is that of its folder.
var azureName = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9_-]*$`)

var azure = Contract{
	Name: "azure",
	check: func(f *pb.Function, r Report) {
		if n := f.GetAzure().GetFunction(); n != "" && !azureName.MatchString(n) && !r.Has("azure.function") {
			r.Add("azure.function", "%q must be the name of a folder with a function.json: a letter, then letters, digits, _ and -", n)
		}
	},
}
