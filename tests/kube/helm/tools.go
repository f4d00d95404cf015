//go:build tools

// Package tools pins the program that renders the chart.
package tools

import _ "helm.sh/helm/v4/cmd/helm"
